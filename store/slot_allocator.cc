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

SlotRun SlotAllocator::untouched_regions(uint64_t most) const {
  SlotRun best{0, 0};
  SlotRun run{0, 0};
  most = std::min(most, untouched_);
  for (uint64_t i = 0; i < taken_in_.size() && best.count < most; ++i) {
    const uint64_t region = (cursor_ + i) % taken_in_.size();
    if (taken_in_[region] != 0) {
      run.count = 0;
      continue;
    }
    // The first does not follow the last.
    if (run.count == 0 || region == 0) run = {region, 0};
    ++run.count;
    if (run.count > best.count) best = run;
  }
  return best;
}

uint64_t SlotAllocator::first_free() {
  // Found in one of the regions, since free_ > 0.
  while (taken_in_[cursor_] == region_size(cursor_)) cursor_ = (cursor_ + 1) % taken_in_.size();
  uint64_t slot = cursor_ * region_;
  while (taken(slot)) ++slot;
  return slot;
}

uint64_t SlotAllocator::begin(SlotStream& stream) {
  const bool filled = stream.regions > 0 && stream.next >= stream.end;
  const SlotRun found = untouched_regions(filled ? std::min(stream.regions * 4, kMostRegions) : 1);
  stream.regions = found.count;
  if (found.count == 0) return first_free();
  cursor_ = (found.first + found.count) % taken_in_.size();
  stream.end = std::min((found.first + found.count) * region_, slots_);
  return found.first * region_;
}

std::optional<SlotRun> SlotAllocator::allocate(uint64_t want, std::optional<uint64_t> goal,
                                               SlotStream& stream) {
  const std::lock_guard lock(mutex_);
  if (free_ == 0) return std::nullopt;
  const uint64_t first = goal && is_free(*goal) ? *goal
                         : is_free(stream.next) ? stream.next
                                                : begin(stream);
  const SlotRun run = take_from(first, want);
  stream.next = first + run.count;
  return run;
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
