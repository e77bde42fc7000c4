#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cowfs {

/// A few threads for work that would keep a thread from reading requests: writes that waited for a
/// chunk, long copies, flushes beyond a number, and what asks the kernel about this very mount.
/// Thread-safe. Actions must not throw.
class Deferred {
 public:
  explicit Deferred(unsigned threads);
  Deferred(const Deferred&) = delete;
  Deferred& operator=(const Deferred&) = delete;
  /// Runs what is queued, then ends.
  ~Deferred();

  void run(std::function<void()> action);

 private:
  void work();

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace cowfs
