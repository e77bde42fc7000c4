#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace cowfs {

/// One page of a chunk map: 2048 chunks of two bits, chunk c in bits 2(c mod 32) and up of word
/// c / 32. 512 bytes, on disk little-endian.
constexpr uint64_t kChunksPerPage = 2048;
constexpr size_t kMapWords = kChunksPerPage / 32;
using MapBits = std::array<uint64_t, kMapWords>;

/// Memory for map pages. Pages hold no pointers and are named by slot numbers, so that the memory
/// can be shared with another process. Thread-safe; a page's words are atomic one by one.
class MapArena {
 public:
  using Page = std::array<std::atomic<uint64_t>, kMapWords>;
  static_assert(sizeof(Page) == 512 && std::atomic<uint64_t>::is_always_lock_free);

  /// Whose page a slot is, and whether it changed since it was last copied.
  struct Header {
    std::atomic<uint64_t> layer;
    std::atomic<uint32_t> page;
    std::atomic<uint32_t> dirty;
  };

  MapArena() = default;
  MapArena(const MapArena&) = delete;
  MapArena& operator=(const MapArena&) = delete;
  ~MapArena();

  /// A zeroed page; never slot 0. ENOMEM if there is no memory.
  [[nodiscard]] uint32_t allocate(uint64_t layer, uint64_t page);
  void release(uint32_t slot);

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

  std::array<std::atomic<Segment*>, kSegments> segments_{};
  std::mutex mutex_;  // guards what follows
  uint32_t next_ = 1;
  std::vector<uint32_t> free_;
};

}  // namespace cowfs
