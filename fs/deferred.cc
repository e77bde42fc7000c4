#include "fs/deferred.h"

namespace cowfs {

Deferred::Deferred(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

Deferred::~Deferred() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Deferred::run(std::function<void()> action) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(action));
  }
  changed_.notify_one();
}

void Deferred::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const std::function<void()> action = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    action();
    lock.lock();
  }
}

}  // namespace cowfs
