#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "store/slot_run.h"

namespace cowfs {

/// Which slots of a pool are taken, in memory: one bit each, and a count for each region. A slot is
/// taken from the moment on at which it is given to a layer, long before a commit says so, and free
/// only when the commit that freed it is durable and nobody can be at it any more (I5).
/// Thread-safe.
///
/// A layer that goes on writing gets the slots that follow its last ones. One that begins somewhere
/// gets a region that nobody has begun, so that what several write at once does not mix. One that
/// has filled its regions gets four times as many, side by side, and the next layer begins behind
/// them: a large image lies in few pieces, and one that is hardly written takes little of what
/// nobody has begun. Nothing is kept from anybody: once there is no such region, any free slot will
/// do.
class SlotAllocator {
 public:
  /// `region`: slots, a multiple of 64.
  SlotAllocator(uint64_t slots, uint64_t region);

  /// Takes [run.first, run.first + run.count); false, with nothing taken, if one of them is taken
  /// already or there is no such slot.
  [[nodiscard]] bool claim(SlotRun run);
  /// At most `want` > 0 neighbouring slots: from `goal` on if that is free, or else where `stream`
  /// goes on. None: all slots are taken.
  [[nodiscard]] std::optional<SlotRun> allocate(uint64_t want, std::optional<uint64_t> goal,
                                                SlotStream& stream);
  [[nodiscard]] bool is_taken(uint64_t slot);
  /// Gives taken ones back.
  void release(std::span<const SlotRun> runs);
  /// There are so many now, no fewer than before.
  void grow(uint64_t slots);

  [[nodiscard]] uint64_t slots();
  [[nodiscard]] uint64_t free_slots();

 private:
  static constexpr uint64_t kWordSlots = 64;
  static constexpr uint64_t kMostRegions = 16;  // side by side for one layer

  [[nodiscard]] bool taken(uint64_t slot) const {
    return (words_[slot / kWordSlots] >> (slot % kWordSlots) & 1U) != 0;
  }
  void set(uint64_t slot, bool taken);
  /// Takes what is free from `first` on, at most `want`.
  [[nodiscard]] SlotRun take_from(uint64_t first, uint64_t want);
  [[nodiscard]] bool is_free(uint64_t slot) const { return slot < slots_ && !taken(slot); }
  /// The first `most` regions side by side of which nothing is taken, or the most that there are;
  /// the count is 0 if there is none.
  [[nodiscard]] SlotRun untouched_regions(uint64_t most) const;
  /// Where a layer goes on that has no place to: the first slot.
  [[nodiscard]] uint64_t begin(SlotStream& stream);
  [[nodiscard]] uint64_t first_free();
  [[nodiscard]] uint64_t region_size(uint64_t region) const;

  const uint64_t region_;
  std::mutex mutex_;  // guards what follows
  uint64_t slots_ = 0;
  uint64_t free_ = 0;
  std::vector<uint64_t> words_;
  std::vector<uint64_t> taken_in_;  // of each region
  uint64_t untouched_ = 0;          // regions of which nothing is taken
  uint64_t cursor_ = 0;             // region
};

}  // namespace cowfs
