// A slot belongs to the layer that its header names, from the last store of `allocate` on. A
// process that is killed leaves pages that it was about to fill from the catalog, and some that no
// map came to name; their mark says that the catalog has all of them. So only pages with another
// mark are found by the process that comes after, and there is one of each (see chunk_map.cc).

#include "store/map_arena.h"

#include <cerrno>
#include <utility>

#include "store/error.h"

namespace cowfs {

MapArena::MapArena(std::shared_ptr<LiveMemory> memory) : memory_(std::move(memory)) {
  static_assert(sizeof(Segment) % 4096 == 0);
  const uint32_t used = memory_->segments(LiveMemory::Region::maps);
  for (uint32_t i = 0; i < used; ++i) {
    segments_[i].store(static_cast<Segment*>(memory_->map_segment(LiveMemory::Region::maps, i)));
    find_pages(i);
  }
  if (used > 0) next_ = used * kSegmentPages;
}

void MapArena::find_pages(uint32_t segment) {
  for (uint32_t i = segment == 0 ? 1 : 0; i < kSegmentPages; ++i) {
    const uint32_t slot = segment * kSegmentPages + i;
    Header& header = this->header(slot);
    const uint64_t layer = header.layer.load(std::memory_order_acquire);
    if (layer != 0 && header.mark.load() != kCommitted) {
      found_[layer].push_back({header.page.load(), slot});
    } else {
      header.layer.store(0);
      free_.push_back(slot);
    }
  }
}

uint32_t MapArena::allocate(uint64_t layer, uint64_t page) {
  uint32_t slot = 0;
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      slot = free_.back();
      free_.pop_back();
    } else {
      const uint32_t index = next_ / kSegmentPages;
      if (index >= kSegments) throw Error(ENOMEM, "chunk map");
      if (segments_[index].load(std::memory_order_relaxed) == nullptr) {
        void* memory = memory_->add_segment(LiveMemory::Region::maps);
        segments_[index].store(static_cast<Segment*>(memory), std::memory_order_release);
      }
      slot = next_++;
    }
  }
  for (std::atomic<uint64_t>& word : this->page(slot)) word.store(0, std::memory_order_relaxed);
  Header& header = this->header(slot);
  header.page.store(static_cast<uint32_t>(page), std::memory_order_relaxed);
  header.mark.store(kCommitted, std::memory_order_relaxed);
  header.layer.store(layer, std::memory_order_release);
  return slot;
}

void MapArena::release(uint32_t slot) {
  const std::lock_guard lock(mutex_);
  header(slot).layer.store(0, std::memory_order_relaxed);
  free_.push_back(slot);
}

bool MapArena::has_found(uint64_t layer) {
  const std::lock_guard lock(mutex_);
  return found_.contains(layer);
}

std::vector<MapArena::Found> MapArena::take_found(uint64_t layer) {
  const std::lock_guard lock(mutex_);
  const auto found = found_.find(layer);
  if (found == found_.end()) return {};
  std::vector<Found> pages = std::move(found->second);
  found_.erase(found);
  return pages;
}

void MapArena::release_found() {
  std::unordered_map<uint64_t, std::vector<Found>> left;
  {
    const std::lock_guard lock(mutex_);
    left.swap(found_);
  }
  for (const auto& [layer, pages] : left) {
    for (const Found& found : pages) release(found.slot);
  }
}

}  // namespace cowfs
