#include "store/slot_map.h"

#include <algorithm>
#include <cerrno>

#include "store/error.h"

namespace cowfs {

uint64_t count_of(const std::vector<SlotRun>& runs) {
  uint64_t count = 0;
  for (const SlotRun& run : runs) count += run.count;
  return count;
}

void add_slot(std::vector<SlotRun>& runs, uint64_t slot) {
  if (!runs.empty() && runs.back().first + runs.back().count == slot) {
    ++runs.back().count;
  } else {
    runs.push_back({slot, 1});
  }
}

void add_difference(const MapBits& before, const MapBits& after, SlotDifference& difference) {
  for (uint64_t i = 0; i < SlotMap::kChunksInPage; ++i) {
    const uint32_t old_entry = SlotMap::entry(before, i);
    const uint32_t new_entry = SlotMap::entry(after, i);
    if (old_entry == new_entry) continue;
    if (SlotMap::is_present(old_entry)) {
      add_slot(difference.freed, SlotMap::slot_of_entry(old_entry));
    }
    if (SlotMap::is_present(new_entry)) {
      add_slot(difference.used, SlotMap::slot_of_entry(new_entry));
    }
  }
}

SlotMap::Run SlotMap::run(uint64_t chunk, uint64_t limit) {
  Run run{ChunkState::absent, limit, 0};
  if (chunk >= chunks()) return run;
  limit = std::min(limit, chunks() - chunk);
  uint64_t length = 0;
  while (length < limit) {
    const uint64_t page = (chunk + length) / kChunksInPage;
    uint64_t in_page = (chunk + length) % kChunksInPage;
    const auto [words, pages] = look(page);
    if (words == nullptr) {
      if (length > 0 && run.state != ChunkState::absent) break;
      run.state = ChunkState::absent;
      length += pages * kChunksInPage - in_page;
      continue;
    }
    for (; in_page < kChunksInPage && length < limit; ++in_page, ++length) {
      // Acquire: who sees a slot here sees the data that was written to it before.
      const uint64_t word = (*words)[in_page / 2].load(std::memory_order_acquire);
      const auto value = static_cast<uint32_t>(word >> (in_page % 2 * kBits));
      if (length == 0) {
        run.state = state_of(value);
        if (is_present(value)) run.slot = slot_of_entry(value);
      } else if (state_of(value) != run.state ||
                 (is_present(value) && slot_of_entry(value) != run.slot + length)) {
        run.count = length;
        return run;
      }
    }
  }
  run.count = std::min(length, limit);
  return run;
}

uint32_t SlotMap::exchange(MapArena::Page& words, uint64_t in_page, uint32_t value) {
  const uint64_t shift = in_page % 2 * kBits;
  const uint64_t mask = uint64_t{UINT32_MAX} << shift;
  std::atomic<uint64_t>& word = words[in_page / 2];
  uint64_t old = word.load(std::memory_order_relaxed);
  while (!word.compare_exchange_weak(old, (old & ~mask) | (uint64_t{value} << shift))) {
  }
  return static_cast<uint32_t>(old >> shift);
}

void SlotMap::set_present(uint64_t first, uint64_t count, uint64_t slot) {
  if (first + count > chunks()) throw Error(EFBIG, "chunk map");
  while (count > 0) {
    const uint64_t page = first / kChunksInPage;
    MapArena::Page& words = words_for_change(page);
    for (uint64_t i = first % kChunksInPage; i < kChunksInPage && count > 0; ++i, --count) {
      exchange(words, i, static_cast<uint32_t>(slot + 1));
      ++first;
      ++slot;
    }
    changed(page);
  }
}

void SlotMap::hide(uint64_t first, uint64_t count) {
  if (first + count > chunks()) throw Error(EFBIG, "chunk map");
  while (count > 0) {
    const Run run = this->run(first, count);
    if (run.state == ChunkState::absent) {
      for (uint64_t left = run.count; left > 0;) {
        const uint64_t chunk = first + run.count - left;
        const uint64_t page = chunk / kChunksInPage;
        MapArena::Page& words = words_for_change(page);
        for (uint64_t i = chunk % kChunksInPage; i < kChunksInPage && left > 0; ++i, --left) {
          const uint64_t shift = i % 2 * kBits;
          std::atomic<uint64_t>& word = words[i / 2];
          uint64_t old = word.load(std::memory_order_relaxed);
          while (static_cast<uint32_t>(old >> shift) == 0 &&
                 !word.compare_exchange_weak(old, old | uint64_t{kZeroEntry} << shift)) {
          }
        }
        changed(page);
      }
    }
    first += run.count;
    count -= run.count;
  }
}

void SlotMap::take_away(uint64_t first, uint64_t count, ChunkState state,
                        std::vector<SlotRun>& freed) {
  if (first + count > chunks()) throw Error(EFBIG, "chunk map");
  const uint32_t value = state == ChunkState::zero ? kZeroEntry : 0;
  while (count > 0) {
    const uint64_t page = first / kChunksInPage;
    MapArena::Page& words = words_for_change(page);
    for (uint64_t i = first % kChunksInPage; i < kChunksInPage && count > 0; ++i, --count) {
      const uint32_t old = exchange(words, i, value);
      if (is_present(old)) add_slot(freed, slot_of_entry(old));
      ++first;
    }
    changed(page);
  }
}

}  // namespace cowfs
