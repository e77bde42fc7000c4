#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cowfs {

/// A few threads that take a part of a reader's work off it, where one reader alone would leave
/// processors idle. Nothing may depend on it: what they do not come to, the reader does himself.
/// Thread-safe.
class Helpers {
 public:
  Helpers() = default;
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;
  ~Helpers() { stop(); }

  /// Has `work` done soon, or never if too much is waiting. What it throws is dropped. The threads
  /// begin with the first offer: a base that is not compressed needs none.
  void offer(std::function<void()> work);
  /// Returns when nothing is done any more; what is waiting is dropped.
  void stop();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  std::vector<std::thread> threads_;
  bool started_ = false;
  bool stopping_ = false;
};

}  // namespace cowfs
