#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "store/map_arena.h"

namespace cowfs {

/// What a layer says of one chunk. The values are those on disk.
enum class ChunkState : uint8_t {
  absent = 0,   ///< ask the parent
  present = 1,  ///< in this layer's CoW space
  zero = 2,     ///< reads as zeros, hides the parent, takes no space
};

/// Whether every chunk of the page is in a state that there is.
bool valid(const MapBits& bits);

/// A page as it was when it was copied: what a commit writes.
struct PageCopy {
  uint64_t page;
  MapBits bits;
};

/// The highest present chunk of a page, counted within it; none if none is present.
std::optional<uint64_t> last_present(const MapBits& bits);

/// Makes the copy's chunks from `end` on absent; whether that changed something.
bool keep_below(PageCopy& copy, uint64_t end);

/// The chunk map of one layer in memory: two bits a chunk, in pages of 2048 chunks that are loaded
/// from the catalog in groups of 1024 when first asked for, and allocated when first written.
///
///   root[256] -> node[512] -> leaf[1024] -> slot of the arena (0: all chunks absent)
///
/// Look-ups take no lock. Changes are atomic for each 32 chunks. The order that I4 needs is the
/// caller's: set a chunk present only after its data's write has returned.
class ChunkMap {
 public:
  using Receive = std::function<void(uint64_t page, const MapBits& bits)>;
  /// Reads pages [first, first + count) from the catalog; may throw, then nothing is loaded.
  using Load = std::function<void(uint64_t first, uint64_t count, const Receive& receive)>;

  static constexpr uint64_t kMaxChunks = uint64_t{1} << 38;  // 1 PiB of 4 KiB chunks

  ChunkMap(MapArena& arena, uint64_t layer, Load load);
  ChunkMap(const ChunkMap&) = delete;
  ChunkMap& operator=(const ChunkMap&) = delete;
  /// Gives the pages back to the arena. What was not taken is lost.
  ~ChunkMap();

  /// Takes over pages that an earlier process had of this layer, before anything else is called:
  /// they count as changed, whatever the catalog says. EUCLEAN, with none of them taken over and
  /// all released, if they cannot be what it left.
  void adopt(const std::vector<MapArena::Found>& pages);

  /// State of `chunk`, and how many chunks from it on, at most `limit` > 0, are in that state.
  [[nodiscard]] std::pair<ChunkState, uint64_t> run(uint64_t chunk, uint64_t limit);

  /// Sets `count` chunks and marks their pages dirty.
  void set(uint64_t first, uint64_t count, ChunkState state);

  /// Copies the dirty pages and marks them as on their way, each before it is read: a change that
  /// the copy misses marks it anew. What is said of chunks from `end` on is left out, and such a
  /// page stays dirty.
  [[nodiscard]] std::vector<PageCopy> take_dirty(uint64_t end = kMaxChunks);
  /// Some pages that take_dirty returned have come to the catalog.
  void committed(const std::vector<uint64_t>& pages);
  /// Some pages that take_dirty returned have not: they are dirty again.
  void put_back(const std::vector<uint64_t>& pages);
  [[nodiscard]] PageCopy copy(uint64_t page);
  [[nodiscard]] bool dirty();

  /// Forgets what was changed since it was loaded or last committed: reads again from the catalog
  /// what it had loaded. Nobody may set chunks meanwhile; look-ups may see some old, some new. If
  /// it throws, some is not as the catalog has it.
  void discard();

  /// Makes every chunk from `first` on absent and unmarks pages that lie wholly behind it; the
  /// catalog must have forgotten them already. Nobody may set chunks there meanwhile.
  void clear_from(uint64_t first);

 private:
  static constexpr unsigned kLeafBits = 10;
  static constexpr unsigned kNodeBits = 9;
  static constexpr unsigned kRootBits = 8;
  using Leaf = std::array<std::atomic<uint32_t>, 1U << kLeafBits>;
  using Node = std::array<std::atomic<Leaf*>, 1U << kNodeBits>;

  /// Stands for every leaf of which the catalog has nothing, until something in it changes.
  static Leaf empty_leaf_;

  [[nodiscard]] std::atomic<Leaf*>* entry_of_leaf(uint64_t page) const;
  /// The leaf that holds `page`, loaded if need be; to be changed only if it is `for_change`.
  Leaf& leaf(uint64_t page, bool for_change = false);
  Leaf& load_leaf(uint64_t page, bool for_change);
  void release_pages(Leaf& leaf);
  uint32_t slot_for_change(uint64_t page);
  /// A slot for a page that had none; marking it later needs no memory.
  uint32_t new_slot(uint64_t page);
  void mark_dirty(uint64_t page, uint32_t slot);
  [[nodiscard]] uint32_t slot_of(uint64_t page) {
    return leaf(page)[page & ((1U << kLeafBits) - 1)].load(std::memory_order_acquire);
  }
  template <typename Visit>
  void for_each_leaf(const Visit& visit);

  MapArena& arena_;
  const uint64_t layer_;
  const Load load_;
  std::array<std::atomic<Node*>, 1U << kRootBits> root_{};
  std::mutex load_mutex_;              // held while a leaf is loaded; before dirty_mutex_
  std::mutex dirty_mutex_;             // guards what follows
  size_t pages_ = 0;                   // with a slot, and perhaps some more
  std::vector<uint64_t> dirty_pages_;  // has room for all of them
};

}  // namespace cowfs
