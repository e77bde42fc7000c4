#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "store/live_memory.h"

namespace cowfs {

/// What of an image the catalog may not have yet. Lives in LiveMemory; bytes and nanoseconds.
struct LiveImage {
  std::atomic<uint64_t> id;  ///< 0: nobody's
  std::atomic<uint64_t> size;
  std::atomic<uint64_t> parent_limit;
  /// 1 + the size to which it is being cut, or 0. The catalog may have been told already.
  std::atomic<uint64_t> cutting;
  std::atomic<int64_t> atime_ns;
  std::atomic<int64_t> mtime_ns;
  std::atomic<int64_t> ctime_ns;
  std::atomic<uint64_t> failed;  ///< a sync or commit failed (I8)
};
static_assert(sizeof(LiveImage) == 64 && std::atomic<int64_t>::is_always_lock_free);

/// The LiveImages of a store. Thread-safe.
class LiveImages {
 public:
  explicit LiveImages(std::shared_ptr<LiveMemory> memory);
  LiveImages(const LiveImages&) = delete;
  LiveImages& operator=(const LiveImages&) = delete;

  /// A record of a process before this one, or null.
  [[nodiscard]] LiveImage* find(uint64_t id);
  /// A new one, zeroed but for the image's number, which is set by `publish`.
  [[nodiscard]] LiveImage& allocate();
  /// From here on a process that comes after finds it; all else is filled in.
  static void publish(LiveImage& image, uint64_t id) {
    image.id.store(id, std::memory_order_release);
  }
  void release(LiveImage& image);
  /// Releases those that were found in the memory and are of none of the images in the catalog:
  /// all that `find` was not asked for.
  void release_others();

 private:
  void use_segment(void* memory);

  const std::shared_ptr<LiveMemory> memory_;
  std::mutex mutex_;  // guards what follows
  std::vector<LiveImage*> free_;
  std::unordered_map<uint64_t, LiveImage*> found_;
};

}  // namespace cowfs
