#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "store/map_tree.h"

namespace cowfs {

/// What a layer says of one chunk. The values are those on disk.
enum class ChunkState : uint8_t {
  absent = 0,   ///< ask the parent
  present = 1,  ///< in this layer's CoW space
  zero = 2,     ///< reads as zeros, hides the parent, takes no space
};

/// Whether every chunk of the page is in a state that there is.
bool valid(const MapBits& bits);

/// The highest present chunk of a page, counted within it; none if none is present.
std::optional<uint64_t> last_present(const MapBits& bits);

/// The chunk map of a layer whose chunks' places follow from their numbers: two bits a chunk, the
/// ChunkState; 2048 chunks a page.
class ChunkMap : public MapTree {
 public:
  static constexpr unsigned kBits = 2;
  static constexpr uint64_t kMaxChunks = uint64_t{1} << 38;  // 1 PiB of 4 KiB chunks

  ChunkMap(MapArena& arena, uint64_t layer, Load load)
      : MapTree(arena, layer, kBits, kMaxChunks, std::move(load), valid) {}

  /// State of `chunk`, and how many chunks from it on, at most `limit` > 0, are in that state.
  [[nodiscard]] std::pair<ChunkState, uint64_t> run(uint64_t chunk, uint64_t limit);

  /// Sets `count` chunks and marks their pages dirty.
  void set(uint64_t first, uint64_t count, ChunkState state);
};

}  // namespace cowfs
