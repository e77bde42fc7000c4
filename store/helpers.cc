#include "store/helpers.h"

#include <algorithm>
#include <utility>

#include "store/error.h"

namespace cowfs {

void Helpers::offer(std::function<void()> work) {
  constexpr size_t kMostWaiting = 256;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || waiting_.size() >= kMostWaiting) return;
    if (!std::exchange(started_, true)) {
      // The reader makes one more.
      const unsigned count = std::clamp(std::thread::hardware_concurrency(), 2U, 5U) - 1;
      for (unsigned i = 0; i < count; ++i) {
        if (!attempt([&] { threads_.emplace_back([this] { run(); }); })) break;
      }
    }
    if (threads_.empty()) return;
    waiting_.push_back(std::move(work));
  }
  changed_.notify_one();
}

void Helpers::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    waiting_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Helpers::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    {
      const std::function<void()> work = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      attempt(work);
    }
    lock.lock();
  }
}

}  // namespace cowfs
