#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>

namespace cowfs {

/// Lets many callers share one run of an expensive operation. A caller is served by a run that
/// began after its call (I3), so several that wait during one run share the next. Thread-safe.
class GroupCommit {
 public:
  /// Runs `operation`, or waits for another caller's run of it. What that run throws is thrown in
  /// every caller that it served.
  void run(const std::function<void()>& operation) {
    std::unique_lock lock(mutex_);
    const uint64_t mine = started_ + 1;
    while (finished_ < mine) {
      if (running_) {
        changed_.wait(lock);
        continue;
      }
      running_ = true;
      ++started_;
      lock.unlock();
      std::exception_ptr failure;
      try {
        operation();
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      running_ = false;
      finished_ = started_;
      if (failure) last_failed_ = finished_, failure_ = failure;
      changed_.notify_all();
    }
    // Served by run `mine` or a later one; only the first failure of those is this caller's.
    if (failure_ && last_failed_ >= mine) std::rethrow_exception(failure_);
  }

 private:
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  bool running_ = false;
  uint64_t started_ = 0;
  uint64_t finished_ = 0;
  uint64_t last_failed_ = 0;
  std::exception_ptr failure_;
};

}  // namespace cowfs
