#include "store/chunk_map.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <set>
#include <string>
#include <utility>

#include "store/error.h"

namespace cowfs {
namespace {

constexpr uint64_t kLowBits = 0x5555555555555555;
constexpr uint64_t kChunksPerWord = 32;

uint64_t pattern(ChunkState state) { return kLowBits * static_cast<uint64_t>(state); }

/// Mask over the two bits of chunks [first, first + count) of a word; count in 1..32.
uint64_t mask(uint64_t first, uint64_t count) {
  const uint64_t bits = count == kChunksPerWord ? ~uint64_t{0} : (uint64_t{1} << (2 * count)) - 1;
  return bits << (2 * first);
}

}  // namespace

std::optional<uint64_t> last_present(const MapBits& bits) {
  for (size_t i = bits.size(); i-- > 0;) {
    const uint64_t present = bits[i] & pattern(ChunkState::present);
    if (present == 0) continue;
    return i * kChunksPerWord + (63 - static_cast<uint64_t>(std::countl_zero(present))) / 2;
  }
  return std::nullopt;
}

bool valid(const MapBits& bits) {
  return std::all_of(bits.begin(), bits.end(),
                     [](uint64_t word) { return (word & (word >> 1) & kLowBits) == 0; });
}

bool keep_below(PageCopy& copy, uint64_t end) {
  const uint64_t first = copy.page * kChunksPerPage;
  uint64_t keep = end > first ? end - first : 0;
  bool changed = false;
  for (uint64_t& word : copy.bits) {
    const uint64_t kept = std::min(keep, kChunksPerWord);
    const uint64_t bits = kept == 0 ? 0 : word & mask(0, kept);
    changed = changed || bits != word;
    word = bits;
    keep -= kept;
  }
  return changed;
}

constinit ChunkMap::Leaf ChunkMap::empty_leaf_{};

ChunkMap::ChunkMap(MapArena& arena, uint64_t layer, Load load)
    : arena_(arena), layer_(layer), load_(std::move(load)) {}

void ChunkMap::adopt(const std::vector<MapArena::Found>& pages) {
  try {
    std::set<uint64_t> seen;
    for (const MapArena::Found& found : pages) {
      MapBits bits{};
      const MapArena::Page& words = arena_.page(found.slot);
      for (size_t i = 0; i < bits.size(); ++i) bits[i] = words[i].load();
      if (found.page >= kMaxChunks / kChunksPerPage || !seen.insert(found.page).second ||
          !valid(bits)) {
        throw Error::with_message(EUCLEAN, "page " + std::to_string(found.page) + " of layer " +
                                               std::to_string(layer_) +
                                               " in memory is not what a server leaves");
      }
    }
    // What can fail for want of memory or of the catalog, before anything is changed.
    for (const uint64_t page : seen) leaf(page, true);
    const std::lock_guard lock(dirty_mutex_);
    pages_ += pages.size();
    dirty_pages_.reserve(2 * pages_ + 1);
  } catch (...) {
    for (const MapArena::Found& found : pages) arena_.release(found.slot);
    throw;
  }
  for (const MapArena::Found& found : pages) {
    std::atomic<uint32_t>& entry = leaf(found.page, true)[found.page & ((1U << kLeafBits) - 1)];
    if (const uint32_t loaded = entry.exchange(found.slot); loaded != 0) arena_.release(loaded);
    arena_.header(found.slot).mark.store(MapArena::kCommitting);
    mark_dirty(found.page, found.slot);
  }
}

template <typename Visit>
void ChunkMap::for_each_leaf(const Visit& visit) {
  for (size_t r = 0; r < root_.size(); ++r) {
    Node* node = root_[r].load(std::memory_order_acquire);
    if (node == nullptr) continue;
    for (size_t n = 0; n < node->size(); ++n) {
      Leaf* leaf = (*node)[n].load(std::memory_order_acquire);
      if (leaf != nullptr && leaf != &empty_leaf_)
        visit(*leaf, ((r << kNodeBits) + n) << kLeafBits);
    }
  }
}

ChunkMap::~ChunkMap() {
  for_each_leaf([this](Leaf& leaf, uint64_t) {
    release_pages(leaf);
    delete &leaf;
  });
  for (std::atomic<Node*>& node : root_) delete node.load();
}

std::atomic<ChunkMap::Leaf*>* ChunkMap::entry_of_leaf(uint64_t page) const {
  const uint64_t index = page >> kLeafBits;
  Node* node = root_[index >> kNodeBits].load(std::memory_order_acquire);
  return node == nullptr ? nullptr : &(*node)[index & ((1U << kNodeBits) - 1)];
}

ChunkMap::Leaf& ChunkMap::leaf(uint64_t page, bool for_change) {
  if (const std::atomic<Leaf*>* entry = entry_of_leaf(page); entry != nullptr) {
    Leaf* leaf = entry->load(std::memory_order_acquire);
    if (leaf != nullptr && (!for_change || leaf != &empty_leaf_)) return *leaf;
  }
  return load_leaf(page, for_change);
}

ChunkMap::Leaf& ChunkMap::load_leaf(uint64_t page, bool for_change) {
  const std::lock_guard lock(load_mutex_);
  const uint64_t index = page >> kLeafBits;
  std::atomic<Node*>& node_entry = root_[index >> kNodeBits];
  if (node_entry.load() == nullptr) {
    node_entry.store(new Node{}, std::memory_order_release);
  }
  std::atomic<Leaf*>& entry = *entry_of_leaf(page);
  Leaf* const old = entry.load();
  if (old != nullptr && (!for_change || old != &empty_leaf_)) return *old;  // somebody was faster

  std::unique_ptr<Leaf> leaf;
  if (old == nullptr) {
    try {
      load_(index << kLeafBits, uint64_t{1} << kLeafBits,
            [this, &leaf](uint64_t number, const MapBits& bits) {
              if (leaf == nullptr) leaf = std::make_unique<Leaf>();
              const uint32_t slot = new_slot(number);
              (*leaf)[number & ((1U << kLeafBits) - 1)].store(slot, std::memory_order_relaxed);
              MapArena::Page& words = arena_.page(slot);
              for (size_t i = 0; i < bits.size(); ++i) words[i].store(bits[i]);
            });
    } catch (...) {
      if (leaf != nullptr) release_pages(*leaf);
      throw;
    }
  }
  if (leaf == nullptr && for_change) leaf = std::make_unique<Leaf>();
  Leaf* const loaded = leaf == nullptr ? &empty_leaf_ : leaf.release();
  entry.store(loaded, std::memory_order_release);
  return *loaded;
}

void ChunkMap::release_pages(Leaf& leaf) {
  for (std::atomic<uint32_t>& entry : leaf) {
    if (const uint32_t slot = entry.load(); slot != 0) arena_.release(slot);
  }
}

std::pair<ChunkState, uint64_t> ChunkMap::run(uint64_t chunk, uint64_t limit) {
  if (chunk >= kMaxChunks) return {ChunkState::absent, limit};
  limit = std::min(limit, kMaxChunks - chunk);
  ChunkState state{};
  bool first = true;
  uint64_t length = 0;
  while (length < limit) {
    const uint64_t at = chunk + length;
    const uint64_t page = at / kChunksPerPage;
    const uint64_t in_page = at % kChunksPerPage;
    const Leaf& pages = leaf(page);
    const uint64_t in_leaf = page & ((1U << kLeafBits) - 1);
    const uint32_t slot = pages[in_leaf].load(std::memory_order_acquire);
    if (slot == 0) {
      if (first) {
        state = ChunkState::absent;
        first = false;
      }
      if (state != ChunkState::absent) break;
      const uint64_t empty_pages = &pages == &empty_leaf_ ? pages.size() - in_leaf : 1;
      length += empty_pages * kChunksPerPage - in_page;
      continue;
    }
    const uint64_t in_word = in_page % kChunksPerWord;
    // Acquire: who sees "present" here sees the data that was written before the bit was set.
    const uint64_t word =
        arena_.page(slot)[in_page / kChunksPerWord].load(std::memory_order_acquire) >>
        (2 * in_word);
    if (first) {
      state = static_cast<ChunkState>(word & 3);
      first = false;
    }
    const uint64_t available = kChunksPerWord - in_word;
    const uint64_t equal = std::min<uint64_t>(
        static_cast<uint64_t>(std::countr_zero(word ^ (pattern(state) >> (2 * in_word)))) / 2,
        available);
    length += equal;
    if (equal < available) break;
  }
  return {state, std::min(length, limit)};
}

uint32_t ChunkMap::slot_for_change(uint64_t page) {
  std::atomic<uint32_t>& entry = leaf(page, true)[page & ((1U << kLeafBits) - 1)];
  uint32_t slot = entry.load(std::memory_order_acquire);
  if (slot != 0) return slot;
  const uint32_t fresh = new_slot(page);
  if (entry.compare_exchange_strong(slot, fresh, std::memory_order_acq_rel)) return fresh;
  arena_.release(fresh);
  return slot;
}

uint32_t ChunkMap::new_slot(uint64_t page) {
  {
    const std::lock_guard lock(dirty_mutex_);
    if (dirty_pages_.capacity() <= pages_) dirty_pages_.reserve(2 * pages_ + 1);
    ++pages_;
  }
  return arena_.allocate(layer_, page);
}

void ChunkMap::mark_dirty(uint64_t page, uint32_t slot) {
  if (arena_.header(slot).mark.exchange(MapArena::kChanged) == MapArena::kChanged) return;
  const std::lock_guard lock(dirty_mutex_);
  dirty_pages_.push_back(page);
}

void ChunkMap::set(uint64_t first, uint64_t count, ChunkState state) {
  if (first + count > kMaxChunks) throw Error(EFBIG, "chunk map");
  while (count > 0) {
    const uint64_t page = first / kChunksPerPage;
    const uint32_t slot = slot_for_change(page);
    MapArena::Page& words = arena_.page(slot);
    uint64_t in_page = first % kChunksPerPage;
    while (count > 0 && in_page < kChunksPerPage) {
      const uint64_t in_word = in_page % kChunksPerWord;
      const uint64_t step = std::min(count, kChunksPerWord - in_word);
      const uint64_t bits = mask(in_word, step);
      std::atomic<uint64_t>& word = words[in_page / kChunksPerWord];
      uint64_t old = word.load(std::memory_order_relaxed);
      while (!word.compare_exchange_weak(old, (old & ~bits) | (pattern(state) & bits))) {
      }
      in_page += step;
      first += step;
      count -= step;
    }
    mark_dirty(page, slot);
  }
}

PageCopy ChunkMap::copy(uint64_t page) {
  PageCopy copy{.page = page, .bits = {}};
  const uint32_t slot = slot_of(page);
  if (slot == 0) return copy;
  const MapArena::Page& words = arena_.page(slot);
  for (size_t i = 0; i < copy.bits.size(); ++i) copy.bits[i] = words[i].load();
  return copy;
}

std::vector<PageCopy> ChunkMap::take_dirty(uint64_t end) {
  std::vector<uint64_t> pages;
  std::vector<PageCopy> copies;
  {
    const std::lock_guard lock(dirty_mutex_);
    pages.reserve(dirty_pages_.capacity());
    copies.reserve(dirty_pages_.size());
    pages.swap(dirty_pages_);
  }
  for (const uint64_t page : pages) {
    const uint32_t slot = slot_of(page);
    arena_.header(slot).mark.store(MapArena::kCommitting);
    PageCopy page_copy = copy(page);
    if (end < (page + 1) * kChunksPerPage && keep_below(page_copy, end)) mark_dirty(page, slot);
    copies.push_back(page_copy);
  }
  std::sort(copies.begin(), copies.end(),
            [](const PageCopy& a, const PageCopy& b) { return a.page < b.page; });
  return copies;
}

void ChunkMap::committed(const std::vector<uint64_t>& pages) {
  for (const uint64_t page : pages) {
    // Not of one that changed again meanwhile.
    uint32_t expected = MapArena::kCommitting;
    arena_.header(slot_of(page)).mark.compare_exchange_strong(expected, MapArena::kCommitted);
  }
}

void ChunkMap::put_back(const std::vector<uint64_t>& pages) {
  for (const uint64_t page : pages) mark_dirty(page, slot_for_change(page));
}

bool ChunkMap::dirty() {
  const std::lock_guard lock(dirty_mutex_);
  return !dirty_pages_.empty();
}

void ChunkMap::discard() {
  const std::lock_guard load_lock(load_mutex_);
  for_each_leaf([this](Leaf& leaf, uint64_t first_page) {
    std::vector<bool> held(leaf.size());
    load_(first_page, leaf.size(), [&](uint64_t number, const MapBits& bits) {
      const uint64_t index = number - first_page;
      held[index] = true;
      if (leaf[index].load() == 0) {
        leaf[index].store(new_slot(number), std::memory_order_release);
      }
      MapArena::Page& words = arena_.page(leaf[index].load());
      for (size_t i = 0; i < bits.size(); ++i) words[i].store(bits[i]);
    });
    for (size_t index = 0; index < leaf.size(); ++index) {
      const uint32_t slot = leaf[index].load();
      if (slot == 0) continue;
      arena_.header(slot).mark.store(MapArena::kCommitted);
      if (held[index]) continue;
      for (std::atomic<uint64_t>& word : arena_.page(slot)) word.store(0);
    }
  });
  const std::lock_guard lock(dirty_mutex_);
  dirty_pages_.clear();
}

void ChunkMap::clear_from(uint64_t first) {
  const std::lock_guard load_lock(load_mutex_);
  const uint64_t boundary = first / kChunksPerPage;
  for_each_leaf([&](Leaf& leaf, uint64_t first_page) {
    for (size_t i = 0; i < leaf.size(); ++i) {
      const uint64_t page = first_page + i;
      const uint32_t slot = leaf[i].load();
      if (page < boundary || slot == 0) continue;
      uint64_t keep = page == boundary ? first % kChunksPerPage : 0;
      for (std::atomic<uint64_t>& word : arena_.page(slot)) {
        const uint64_t kept = std::min(keep, kChunksPerWord);
        word.fetch_and(kept == 0 ? 0 : mask(0, kept));
        keep -= kept;
      }
      if (page > boundary) arena_.header(slot).mark.store(MapArena::kCommitted);
    }
  });
  const std::lock_guard lock(dirty_mutex_);
  std::erase_if(dirty_pages_, [boundary](uint64_t page) { return page > boundary; });
}

}  // namespace cowfs
