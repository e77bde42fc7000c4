#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace cowfs {

/// Keeps repeated log lines few: one in five seconds for each subject. Thread-safe.
class RateLimit {
 public:
  /// Nothing if `subject` was let through less than 5 s ago; else how many were held back since.
  std::optional<uint64_t> pass(const std::string& subject) {
    const auto now = std::chrono::steady_clock::now();
    const std::lock_guard lock(mutex_);
    if (subjects_.size() > kMostSubjects) subjects_.clear();
    auto [entry, fresh] = subjects_.try_emplace(subject, Subject{now, 0});
    if (fresh) return 0;
    if (now - entry->second.last < kInterval) {
      ++entry->second.held_back;
      return std::nullopt;
    }
    entry->second.last = now;
    return std::exchange(entry->second.held_back, 0);
  }

 private:
  static constexpr std::chrono::seconds kInterval{5};
  static constexpr size_t kMostSubjects = 1000;

  struct Subject {
    std::chrono::steady_clock::time_point last;
    uint64_t held_back;
  };
  std::mutex mutex_;
  std::map<std::string, Subject> subjects_;
};

}  // namespace cowfs
