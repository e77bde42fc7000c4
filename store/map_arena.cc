#include "store/map_arena.h"

#include <sys/mman.h>

#include <cerrno>
#include <new>

#include "store/error.h"

namespace cowfs {

MapArena::~MapArena() {
  for (std::atomic<Segment*>& segment : segments_) {
    if (Segment* memory = segment.load(); memory != nullptr) ::munmap(memory, sizeof(Segment));
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
        void* memory = ::mmap(nullptr, sizeof(Segment), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw Error(errno, "chunk map");
        // Anonymous memory is zeroed, which is what an empty page is; it takes room when touched.
        segments_[index].store(static_cast<Segment*>(memory), std::memory_order_release);
      }
      slot = next_++;
    }
  }
  for (std::atomic<uint64_t>& word : this->page(slot)) word.store(0, std::memory_order_relaxed);
  Header& header = this->header(slot);
  header.layer.store(layer, std::memory_order_relaxed);
  header.page.store(static_cast<uint32_t>(page), std::memory_order_relaxed);
  header.dirty.store(0, std::memory_order_release);
  return slot;
}

void MapArena::release(uint32_t slot) {
  const std::lock_guard lock(mutex_);
  header(slot).layer.store(0, std::memory_order_relaxed);
  free_.push_back(slot);
}

}  // namespace cowfs
