#pragma once

#include <cerrno>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "store/error.h"

namespace cowfs {

/// Lets many callers share one run of an expensive operation. A caller is served by a run that
/// began after its call (I3), so several that wait during one run share the next. Thread-safe.
class GroupCommit {
 public:
  /// Runs `operation`, or waits for another caller's run of it. If that run throws, every caller
  /// that it served gets an Error, and no other caller does.
  void run(const std::function<void()>& operation) {
    std::unique_lock lock(mutex_);
    if (next_ == nullptr) next_ = std::make_shared<Run>();
    const std::shared_ptr<Run> mine = next_;
    changed_.wait(lock, [&] { return mine->done || !running_; });
    if (!mine->done) {
      running_ = true;
      next_ = nullptr;  // who comes from here on is too late for this run
      lock.unlock();
      int code = 0;
      std::string message;
      try {
        operation();
      } catch (const Error& error) {
        code = error.code();
        attempt([&] { message = error.what(); });
      } catch (const std::exception& error) {
        code = EIO;
        attempt([&] { message = error.what(); });
      }
      lock.lock();
      running_ = false;
      mine->done = true;
      mine->code = code;
      mine->message = message;
      changed_.notify_all();
    }
    // An exception of its own for each: one object is not shared between threads.
    if (mine->code != 0) throw Error::with_message(mine->code, mine->message);
  }

 private:
  struct Run {
    bool done = false;
    int code = 0;  // of the failure, or 0
    std::string message;
  };

  std::mutex mutex_;  // guards all below, and each Run
  std::condition_variable changed_;
  bool running_ = false;
  std::shared_ptr<Run> next_;  // of those who wait for the one that runs to end
};

}  // namespace cowfs
