#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "store/chunk_map.h"
#include "store/map_tree.h"
#include "store/slot_run.h"

namespace cowfs {

/// The chunk map of a layer whose chunks lie anywhere in a pool: 32 bits a chunk, 128 chunks a
/// page. 0 is absent, 2^32 - 1 zero, and any other number n says that the chunk is in slot n - 1.
class SlotMap : public MapTree {
 public:
  static constexpr unsigned kBits = 32;
  static constexpr uint64_t kChunksInPage = kMapWords * 64 / kBits;
  /// What the numbers reach for.
  static constexpr uint64_t kMostSlots = 0xfffffffe;

  /// Of `chunks` chunks at most.
  SlotMap(MapArena& arena, uint64_t layer, uint64_t chunks, Load load, Valid valid)
      : MapTree(arena, layer, kBits, chunks, std::move(load), std::move(valid)) {}

  struct Run {
    ChunkState state;
    uint64_t count;
    uint64_t slot;  ///< of the first chunk, if present; the others follow it
  };
  /// What is said of `chunk` and those behind it, at most `limit` > 0 in all.
  [[nodiscard]] Run run(uint64_t chunk, uint64_t limit);

  /// Chunks [first, first + count), none of them present, are in the slots from `slot` on.
  void set_present(uint64_t first, uint64_t count, uint64_t slot);
  /// Makes chunks absent or zero. The slots that they had are added to `freed`.
  void take_away(uint64_t first, uint64_t count, ChunkState state, std::vector<SlotRun>& freed);

  /// Makes those chunks of [first, first + count) zero that are absent; whoever gives one a slot at
  /// the same time goes first.
  void hide(uint64_t first, uint64_t count);

  /// What a page says of one of its chunks.
  static uint32_t entry(const MapBits& page, uint64_t in_page) {
    return static_cast<uint32_t>(page[in_page / 2] >> (in_page % 2 * kBits));
  }
  static constexpr uint32_t kZeroEntry = UINT32_MAX;
  static uint32_t entry_of_slot(uint64_t slot) { return static_cast<uint32_t>(slot + 1); }
  /// Puts an entry into a page in the place of none.
  static void put(MapBits& page, uint64_t in_page, uint32_t entry) {
    page[in_page / 2] |= uint64_t{entry} << (in_page % 2 * kBits);
  }
  static bool is_present(uint32_t entry) { return entry != 0 && entry != kZeroEntry; }
  static uint64_t slot_of_entry(uint32_t entry) { return uint64_t{entry} - 1; }
  static ChunkState state_of(uint32_t entry) {
    if (entry == 0) return ChunkState::absent;
    return entry == kZeroEntry ? ChunkState::zero : ChunkState::present;
  }

 private:
  /// Puts `value` in the place of a chunk; returns what was there.
  static uint32_t exchange(MapArena::Page& words, uint64_t in_page, uint32_t value);
};

/// How many slots they are.
uint64_t count_of(const std::vector<SlotRun>& runs);
/// Adds a slot, to the last run if it follows that.
void add_slot(std::vector<SlotRun>& runs, uint64_t slot);

/// The slots that two states of a page differ in.
struct SlotDifference {
  std::vector<SlotRun> used;   ///< only in the new one
  std::vector<SlotRun> freed;  ///< only in the old one
};
void add_difference(const MapBits& before, const MapBits& after, SlotDifference& difference);

}  // namespace cowfs
