#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>

namespace cowfs {

/// Bounds the space that an image takes of its own, in bytes. Thread-safe.
///
/// What is being written shows in the host's figures sooner or later; until it surely does it is
/// held as claimed, so that several writers together do not go beyond the limit.
class SpaceLimit {
 public:
  explicit SpaceLimit(std::optional<uint64_t> bytes) { set(bytes); }

  [[nodiscard]] std::optional<uint64_t> get() const;
  void set(std::optional<uint64_t> bytes) { limit_ = bytes.value_or(kNone); }

  /// Bytes that are held while this lives.
  class Claim {
   public:
    Claim() = default;
    Claim(Claim&& other) noexcept
        : limit_(std::exchange(other.limit_, nullptr)), bytes_(other.bytes_) {}
    Claim& operator=(Claim&&) = delete;
    ~Claim() {
      if (limit_ != nullptr) limit_->give_back(bytes_);
    }

   private:
    friend class SpaceLimit;
    Claim(SpaceLimit* limit, uint64_t bytes) : limit_(limit), bytes_(bytes) {}
    SpaceLimit* limit_ = nullptr;
    uint64_t bytes_ = 0;
  };

  /// Claims `bytes` on top of what `own_bytes` says is taken; waits for other claims if they alone
  /// are in the way. Throws Error ENOSPC, naming the limit, if it does not fit.
  [[nodiscard]] Claim claim(uint64_t bytes, const std::function<uint64_t()>& own_bytes);

 private:
  static constexpr uint64_t kNone = UINT64_MAX;

  void give_back(uint64_t bytes);

  std::atomic<uint64_t> limit_ = kNone;
  std::mutex mutex_;  // guards claimed_
  std::condition_variable changed_;
  uint64_t claimed_ = 0;
};

}  // namespace cowfs
