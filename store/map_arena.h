#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "store/live_memory.h"

namespace cowfs {

/// One page of a chunk map: 2048 chunks of two bits, chunk c in bits 2(c mod 32) and up of word
/// c / 32. 512 bytes, on disk little-endian.
constexpr uint64_t kChunksPerPage = 2048;
constexpr size_t kMapWords = kChunksPerPage / 32;
using MapBits = std::array<uint64_t, kMapWords>;

/// Memory for map pages. Pages hold no pointers and are named by slot numbers, so that the memory
/// can outlive this process. Thread-safe; a page's words are atomic one by one.
class MapArena {
 public:
  using Page = std::array<std::atomic<uint64_t>, kMapWords>;
  static_assert(sizeof(Page) == 512 && std::atomic<uint64_t>::is_always_lock_free);

  /// What of a page the catalog has.
  enum Mark : uint32_t {
    kCommitted = 0,   ///< all of it
    kChanged = 1,     ///< it changed since it was last copied
    kCommitting = 2,  ///< it was copied, and the copy may be on its way
  };

  /// Whose page a slot is.
  struct Header {
    std::atomic<uint64_t> layer;  ///< 0: nobody's
    std::atomic<uint32_t> page;
    std::atomic<uint32_t> mark;
  };

  explicit MapArena(std::shared_ptr<LiveMemory> memory = std::make_shared<LiveMemory>());
  MapArena(const MapArena&) = delete;
  MapArena& operator=(const MapArena&) = delete;

  /// A zeroed page; never slot 0. ENOMEM if there is no memory.
  [[nodiscard]] uint32_t allocate(uint64_t layer, uint64_t page);
  void release(uint32_t slot);

  /// A page that an earlier process had.
  struct Found {
    uint64_t page;
    uint32_t slot;
  };
  /// Whether there are some of the layer that the catalog may not have.
  [[nodiscard]] bool has_found(uint64_t layer);
  /// Hands them over: they are as if allocated by the caller. What they say is not verified.
  [[nodiscard]] std::vector<Found> take_found(uint64_t layer);
  /// Releases all that were found and not taken.
  void release_found();

  [[nodiscard]] Page& page(uint32_t slot) { return segment(slot).pages[slot % kSegmentPages]; }
  [[nodiscard]] Header& header(uint32_t slot) {
    return segment(slot).headers[slot % kSegmentPages];
  }

 private:
  static constexpr uint32_t kSegmentPages = 1024;
  static constexpr uint32_t kSegments = 32768;

  struct Segment {
    std::array<Page, kSegmentPages> pages;
    std::array<Header, kSegmentPages> headers;
  };

  Segment& segment(uint32_t slot) {
    return *segments_[slot / kSegmentPages].load(std::memory_order_acquire);
  }
  void find_pages(uint32_t segment);

  const std::shared_ptr<LiveMemory> memory_;
  std::array<std::atomic<Segment*>, kSegments> segments_{};
  std::mutex mutex_;  // guards what follows
  uint32_t next_ = 1;
  std::vector<uint32_t> free_;
  std::unordered_map<uint64_t, std::vector<Found>> found_;  // by layer
};

}  // namespace cowfs
