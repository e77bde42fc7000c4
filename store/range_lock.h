#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace cowfs {

/// Chunks [first, last).
struct ChunkRange {
  uint64_t first;
  uint64_t last;
};

/// Exclusive locks on ranges of an image's chunks, for what changes a chunk's state: copy-up, first
/// writes, trims. Two ranges that do not overlap never wait for each other. Thread-safe. The lock
/// is held over I/O, its mutex is not. Lock order: one range of one image at a time.
class RangeLock {
 public:
  /// Unlocks when destroyed.
  class Guard {
   public:
    Guard(Guard&& other) noexcept : lock_(std::exchange(other.lock_, nullptr)), id_(other.id_) {}
    Guard& operator=(Guard&&) = delete;
    ~Guard() {
      if (lock_ != nullptr) lock_->unlock(id_);
    }
    explicit operator bool() const { return lock_ != nullptr; }

   private:
    friend class RangeLock;
    Guard(RangeLock* lock, uint64_t id) : lock_(lock), id_(id) {}
    RangeLock* lock_;
    uint64_t id_;
  };

  /// Waits until no held range overlaps.
  [[nodiscard]] Guard lock(ChunkRange range);
  /// Empty if a held range overlaps.
  [[nodiscard]] Guard try_lock(ChunkRange range);
  /// Calls `action` once no held range overlaps: at once, or from the thread that unlocks. It must
  /// not wait for long and may find the range taken again.
  void when_free(ChunkRange range, std::function<void()> action);

 private:
  struct Held {
    ChunkRange range;
    uint64_t id;
  };
  struct Waiting {
    ChunkRange range;
    std::function<void()> action;
  };

  [[nodiscard]] bool overlaps(ChunkRange range) const;
  Guard take(ChunkRange range);
  void unlock(uint64_t id);

  std::mutex mutex_;  // guards all below
  std::condition_variable unlocked_;
  std::vector<Held> held_;  // as many as there are threads, so a scan is the quickest look-up
  std::vector<Waiting> waiting_;
  uint64_t next_id_ = 0;
};

}  // namespace cowfs
