#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cowfs {

/// Threads for work that would keep a thread from reading requests: writes that waited for a chunk,
/// long copies, flushes beyond a number, and what asks the kernel about this very mount. A thread
/// is added when all are busy, so that one slow action does not hold up another; they take no
/// memory worth speaking of. Thread-safe. Actions must not throw.
class Deferred {
 public:
  /// Starts one thread; never has more than `most`.
  explicit Deferred(size_t most);
  Deferred(const Deferred&) = delete;
  Deferred& operator=(const Deferred&) = delete;
  ~Deferred() { finish(); }

  /// Runs what is queued, and ends the threads.
  void finish();

  void run(std::function<void()> action);

 private:
  void work();

  const size_t most_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  size_t idle_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace cowfs
