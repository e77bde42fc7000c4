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

/// A page as it was when it was copied: what a commit writes.
struct PageCopy {
  uint64_t page;
  MapBits bits;
};

/// Makes the copy's chunks from `end` on absent, of a map with so many bits a chunk; whether that
/// changed something.
bool keep_below(PageCopy& copy, uint64_t end, unsigned bits_per_chunk);

/// The pages of one layer's map in memory, whatever they say of a chunk: some bits for each, a
/// power of two, 0 for absent. Pages are loaded from the catalog in groups of 1024 when first asked
/// for, and allocated when first written.
///
///   root[] -> node[512] -> leaf[1024] -> slot of the arena (0: all chunks absent)
///
/// Look-ups take no lock. Changes are atomic for each word. The order that I4 needs is the
/// caller's: say of a chunk that it is present only after its data's write has returned.
class MapTree {
 public:
  using Receive = std::function<void(uint64_t page, const MapBits& bits)>;
  /// Reads pages [first, first + count) from the catalog; may throw, then nothing is loaded.
  using Load = std::function<void(uint64_t first, uint64_t count, const Receive& receive)>;
  /// Whether a page says nothing that cannot be.
  using Valid = std::function<bool(const MapBits& bits)>;

  /// Of `chunks` chunks at most.
  MapTree(MapArena& arena, uint64_t layer, unsigned bits_per_chunk, uint64_t chunks, Load load,
          Valid valid);
  MapTree(const MapTree&) = delete;
  MapTree& operator=(const MapTree&) = delete;
  /// Gives the pages back to the arena. What was not taken is lost.
  ~MapTree();

  /// Takes over pages that an earlier process had of this layer, before anything else is called:
  /// they count as changed, whatever the catalog says. EUCLEAN, with none of them taken over and
  /// all released, if they cannot be what it left.
  void adopt(const std::vector<MapArena::Found>& pages);

  /// Copies the dirty pages and marks them as on their way, each before it is read: a change that
  /// the copy misses marks it anew. What is said of chunks from `end` on is left out, and such a
  /// page stays dirty.
  [[nodiscard]] std::vector<PageCopy> take_dirty(uint64_t end = UINT64_MAX);
  /// Some pages that take_dirty returned have come to the catalog.
  void committed(const std::vector<uint64_t>& pages);
  /// Some pages that take_dirty returned have not: they are dirty again.
  void put_back(const std::vector<uint64_t>& pages);
  [[nodiscard]] PageCopy copy(uint64_t page);
  [[nodiscard]] bool dirty();

  /// Forgets what was changed since it was loaded or last committed: reads again from the catalog
  /// what it had loaded. Nobody may change the map meanwhile; look-ups may see some old, some new.
  /// If it throws, some is not as the catalog has it.
  void discard();

  /// Makes every chunk from `first` on absent and unmarks pages that lie wholly behind it; the
  /// catalog must have forgotten them already. Nobody may change chunks there meanwhile.
  void clear_from(uint64_t first);

 protected:
  /// A page to be looked at: null if all of its chunks are absent, `pages` pages from it on.
  struct Look {
    const MapArena::Page* words;
    uint64_t pages;
  };
  [[nodiscard]] Look look(uint64_t page);
  /// The words of a page that is about to be changed.
  [[nodiscard]] MapArena::Page& words_for_change(uint64_t page);
  /// After the change.
  void changed(uint64_t page) { mark_dirty(page, slot_of(page)); }

  [[nodiscard]] uint64_t chunks() const { return chunks_; }
  [[nodiscard]] uint64_t chunks_per_page() const { return chunks_per_page_; }

 private:
  static constexpr unsigned kLeafBits = 10;
  static constexpr unsigned kNodeBits = 9;
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
  const unsigned bits_per_chunk_;
  const uint64_t chunks_per_page_;
  const uint64_t chunks_;
  const Load load_;
  const Valid valid_;
  std::vector<std::atomic<Node*>> root_;
  std::mutex load_mutex_;              // held while a leaf is loaded; before dirty_mutex_
  std::mutex dirty_mutex_;             // guards what follows
  size_t pages_ = 0;                   // with a slot, and perhaps some more
  std::vector<uint64_t> dirty_pages_;  // has room for all of them
};

}  // namespace cowfs
