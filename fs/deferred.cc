#include "fs/deferred.h"

#include <exception>

#include "store/error.h"

namespace cowfs {

Deferred::Deferred(size_t most) : most_(most) {
  threads_.emplace_back([this] { work(); });
}

void Deferred::finish() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Deferred::run(std::function<void()> action) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(action));
    if (idle_ < queue_.size() && threads_.size() < most_) {
      try {
        threads_.emplace_back([this] { work(); });
      } catch (const std::exception&) {
        // No more threads, or no memory for one: those that there are come to it.
      }
    }
  }
  changed_.notify_one();
}

void Deferred::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    --idle_;
    if (queue_.empty()) return;
    const std::function<void()> action = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    attempt(action);
    lock.lock();
  }
}

}  // namespace cowfs
