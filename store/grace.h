#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <mutex>

namespace cowfs {

/// Lets one wait for all who look something up without a lock and then use it: read-copy-update's
/// grace period (P. McKenney, J. Slingwine, "Read-Copy Update: Using Execution History to Solve
/// Concurrency Problems", 1998). Thread-safe.
///
/// Two counters, and which of them newcomers use is turned over by who waits. Somebody may count on
/// the one that was in use a moment ago, so both are turned over and waited for.
class Grace {
 public:
  /// While it lives, what was looked up since it was taken stays. Short, and waits for nothing that
  /// waits for a grace period.
  class Hold {
   public:
    explicit Hold(Grace& grace) : count_(grace.counts_[grace.turn_.load() % 2]) { ++count_; }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    ~Hold() {
      if (count_.fetch_sub(1) == 1) count_.notify_all();
    }

   private:
    std::atomic<unsigned>& count_;
  };

  /// Returns once all holds that were taken before the call have ended.
  void wait() {
    const std::lock_guard lock(mutex_);
    for (int i = 0; i < 2; ++i) {
      std::atomic<unsigned>& before = counts_[turn_.fetch_add(1) % 2];
      for (unsigned count = before.load(); count != 0; count = before.load()) before.wait(count);
    }
  }

 private:
  std::atomic<size_t> turn_ = 0;
  std::array<std::atomic<unsigned>, 2> counts_{};
  std::mutex mutex_;  // one waits at a time
};

}  // namespace cowfs
