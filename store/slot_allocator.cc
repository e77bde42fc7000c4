#include "store/slot_allocator.h"

#include <algorithm>

namespace cowfs {

SlotAllocator::SlotAllocator(uint64_t slots, uint64_t region) : region_(region) { grow(slots); }

uint64_t SlotAllocator::region_size(uint64_t region) const {
  return std::min(region_, slots_ - region * region_);
}

void SlotAllocator::grow(uint64_t slots) {
  const std::lock_guard lock(mutex_);
  if (slots <= slots_) return;
  free_ += slots - slots_;
  slots_ = slots;
  words_.resize(static_cast<size_t>((slots + kWordSlots - 1) / kWordSlots));
  taken_in_.resize(static_cast<size_t>((slots + region_ - 1) / region_));
  untouched_ = static_cast<uint64_t>(std::count(taken_in_.begin(), taken_in_.end(), 0U));
}

void SlotAllocator::set(uint64_t slot, bool taken) {
  uint64_t& count = taken_in_[slot / region_];
  const uint64_t bit = uint64_t{1} << (slot % kWordSlots);
  if (taken) {
    words_[slot / kWordSlots] |= bit;
    if (count++ == 0) --untouched_;
    --free_;
  } else {
    words_[slot / kWordSlots] &= ~bit;
    if (--count == 0) ++untouched_;
    ++free_;
  }
}

bool SlotAllocator::claim(SlotRun run) {
  const std::lock_guard lock(mutex_);
  if (run.first >= slots_ || run.count > slots_ - run.first) return false;
  for (uint64_t slot = run.first; slot < run.first + run.count; ++slot) {
    if (taken(slot)) return false;
  }
  for (uint64_t slot = run.first; slot < run.first + run.count; ++slot) set(slot, true);
  return true;
}

SlotRun SlotAllocator::take_from(uint64_t first, uint64_t want) {
  uint64_t count = 0;
  while (count < want && first + count < slots_ && !taken(first + count)) {
    set(first + count, true);
    ++count;
  }
  return {first, count};
}

std::optional<uint64_t> SlotAllocator::untouched_region() {
  if (untouched_ == 0) return std::nullopt;
  for (uint64_t i = 0; i < taken_in_.size(); ++i) {
    const uint64_t region = (cursor_ + i) % taken_in_.size();
    if (taken_in_[region] == 0) return region;
  }
  return std::nullopt;
}

std::optional<uint64_t> SlotAllocator::first_free() {
  for (uint64_t i = 0; i < taken_in_.size(); ++i) {
    const uint64_t region = (cursor_ + i) % taken_in_.size();
    const uint64_t size = region_size(region);
    if (taken_in_[region] == size) continue;
    cursor_ = region;
    for (uint64_t slot = region * region_; slot < region * region_ + size; ++slot) {
      if (!taken(slot)) return slot;
    }
  }
  return std::nullopt;
}

std::optional<SlotRun> SlotAllocator::allocate(uint64_t want, std::span<const uint64_t> goals) {
  const std::lock_guard lock(mutex_);
  if (free_ == 0) return std::nullopt;
  for (const uint64_t goal : goals) {
    if (goal < slots_ && !taken(goal)) return take_from(goal, want);
  }
  if (const std::optional<uint64_t> region = untouched_region()) {
    cursor_ = (*region + 1) % taken_in_.size();
    return take_from(*region * region_, want);
  }
  return take_from(first_free().value(), want);
}

bool SlotAllocator::is_taken(uint64_t slot) {
  const std::lock_guard lock(mutex_);
  return slot < slots_ && taken(slot);
}

void SlotAllocator::release(std::span<const SlotRun> runs) {
  const std::lock_guard lock(mutex_);
  for (const SlotRun& run : runs) {
    for (uint64_t slot = run.first; slot < run.first + run.count; ++slot) {
      if (slot < slots_ && taken(slot)) set(slot, false);
    }
  }
}

uint64_t SlotAllocator::slots() {
  const std::lock_guard lock(mutex_);
  return slots_;
}

uint64_t SlotAllocator::free_slots() {
  const std::lock_guard lock(mutex_);
  return free_;
}

}  // namespace cowfs
