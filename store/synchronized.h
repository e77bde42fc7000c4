#pragma once

#include <mutex>
#include <utility>

namespace cowfs {

/// A value that can be reached only while its lock is held.
template <typename T>
class Synchronized {
 public:
  /// Access to the value; the lock is held as long as this lives.
  class Guard {
   public:
    T* operator->() { return value_; }
    T& operator*() { return *value_; }

   private:
    friend class Synchronized;
    Guard(std::mutex& mutex, T* value) : lock_(mutex), value_(value) {}
    std::unique_lock<std::mutex> lock_;
    T* value_;
  };

  template <typename... Args>
  explicit Synchronized(Args&&... args) : value_(std::forward<Args>(args)...) {}

  [[nodiscard]] Guard lock() { return Guard(mutex_, &value_); }

 private:
  std::mutex mutex_;
  T value_;
};

}  // namespace cowfs
