#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace cowfs::e2e {

// Does something again and again in a thread of its own, until it is stopped or a round throws.
// Who owns one declares it last, so that it ends before what its rounds use.
class Load {
 public:
  explicit Load(std::function<void()> round)
      : round_(std::move(round)), thread_([this] { Run(); }) {}
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;
  ~Load() { Stop(); }

  void Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  // Whether a round that takes long is to be cut short.
  bool stopping() const { return stop_; }
  // Those that ended well.
  uint64_t rounds() const { return rounds_; }
  // What the last round threw; only after Stop.
  const std::string& complaint() const { return complaint_; }

 private:
  void Run() {
    try {
      for (; !stop_; ++rounds_) round_();
    } catch (const std::exception& error) {
      complaint_ = error.what();
    }
  }

  const std::function<void()> round_;
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> rounds_ = 0;
  std::string complaint_;
  std::thread thread_;  // last: it uses the others
};

// Stops it; all its rounds have to have ended well, and so many.
inline void ExpectGoodEnd(Load& load, uint64_t rounds = 1) {
  load.Stop();
  EXPECT_EQ(load.complaint(), "");
  EXPECT_GE(load.rounds(), rounds);
}

// For rounds: throws with `what` and errno.
inline void Demand(bool right, const std::string& what) {
  if (!right) throw std::runtime_error(what + ": " + strerror(errno));
}

}  // namespace cowfs::e2e
