#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>

namespace cowfs {

/// Lets many callers share one run of an expensive operation. A caller is served by a run that
/// began after its call (I3), so several that wait during one run share the next. Thread-safe.
class GroupCommit {
 public:
  /// Runs `operation`, or waits for another caller's run of it. What that run throws is thrown in
  /// every caller that it served, and in no other.
  void run(const std::function<void()>& operation) {
    std::unique_lock lock(mutex_);
    if (next_ == nullptr) next_ = std::make_shared<Run>();
    const std::shared_ptr<Run> mine = next_;
    changed_.wait(lock, [&] { return mine->done || !running_; });
    if (!mine->done) {
      running_ = true;
      next_ = nullptr;  // who comes from here on is too late for this run
      lock.unlock();
      std::exception_ptr failure;
      try {
        operation();
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      running_ = false;
      mine->done = true;
      mine->failure = failure;
      changed_.notify_all();
    }
    if (mine->failure) std::rethrow_exception(mine->failure);
  }

 private:
  struct Run {
    bool done = false;
    std::exception_ptr failure;
  };

  std::mutex mutex_;  // guards all below, and each Run
  std::condition_variable changed_;
  bool running_ = false;
  std::shared_ptr<Run> next_;  // of those who wait for the one that runs to end
};

}  // namespace cowfs
