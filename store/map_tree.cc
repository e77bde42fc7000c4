#include "store/map_tree.h"

#include <algorithm>
#include <cerrno>
#include <set>
#include <string>
#include <utility>

#include "store/error.h"

namespace cowfs {
namespace {

constexpr unsigned kWordBits = 64;

/// The lowest `chunks` chunks of a word; at most all of them.
uint64_t low_chunks(uint64_t chunks, unsigned bits_per_chunk) {
  const uint64_t bits = chunks * bits_per_chunk;
  return bits >= kWordBits ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
}

}  // namespace

bool keep_below(PageCopy& copy, uint64_t end, unsigned bits_per_chunk) {
  const uint64_t in_word = kWordBits / bits_per_chunk;
  const uint64_t first = copy.page * in_word * kMapWords;
  uint64_t keep = end > first ? end - first : 0;
  bool changed = false;
  for (uint64_t& word : copy.bits) {
    const uint64_t kept = std::min(keep, in_word);
    const uint64_t bits = word & low_chunks(kept, bits_per_chunk);
    changed = changed || bits != word;
    word = bits;
    keep -= kept;
  }
  return changed;
}

constinit MapTree::Leaf MapTree::empty_leaf_{};

MapTree::MapTree(MapArena& arena, uint64_t layer, unsigned bits_per_chunk, uint64_t chunks,
                 Load load, Valid valid)
    : arena_(arena),
      layer_(layer),
      bits_per_chunk_(bits_per_chunk),
      chunks_per_page_(kMapWords * kWordBits / bits_per_chunk),
      chunks_(chunks),
      load_(std::move(load)),
      valid_(std::move(valid)),
      root_(static_cast<size_t>(((chunks / chunks_per_page_) >> (kLeafBits + kNodeBits)) + 1)) {}

void MapTree::adopt(const std::vector<MapArena::Found>& pages) {
  try {
    std::set<uint64_t> seen;
    for (const MapArena::Found& found : pages) {
      MapBits bits{};
      const MapArena::Page& words = arena_.page(found.slot);
      for (size_t i = 0; i < bits.size(); ++i) bits[i] = words[i].load();
      if (found.page >= chunks_ / chunks_per_page_ || !seen.insert(found.page).second ||
          !valid_(bits)) {
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
void MapTree::for_each_leaf(const Visit& visit) {
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

MapTree::~MapTree() {
  for_each_leaf([this](Leaf& leaf, uint64_t) {
    release_pages(leaf);
    delete &leaf;
  });
  for (std::atomic<Node*>& node : root_) delete node.load();
}

std::atomic<MapTree::Leaf*>* MapTree::entry_of_leaf(uint64_t page) const {
  const uint64_t index = page >> kLeafBits;
  Node* node = root_[index >> kNodeBits].load(std::memory_order_acquire);
  return node == nullptr ? nullptr : &(*node)[index & ((1U << kNodeBits) - 1)];
}

MapTree::Leaf& MapTree::leaf(uint64_t page, bool for_change) {
  if (const std::atomic<Leaf*>* entry = entry_of_leaf(page); entry != nullptr) {
    Leaf* leaf = entry->load(std::memory_order_acquire);
    if (leaf != nullptr && (!for_change || leaf != &empty_leaf_)) return *leaf;
  }
  return load_leaf(page, for_change);
}

MapTree::Leaf& MapTree::load_leaf(uint64_t page, bool for_change) {
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

void MapTree::release_pages(Leaf& leaf) {
  for (std::atomic<uint32_t>& entry : leaf) {
    if (const uint32_t slot = entry.load(); slot != 0) arena_.release(slot);
  }
}

uint32_t MapTree::slot_for_change(uint64_t page) {
  std::atomic<uint32_t>& entry = leaf(page, true)[page & ((1U << kLeafBits) - 1)];
  uint32_t slot = entry.load(std::memory_order_acquire);
  if (slot != 0) return slot;
  const uint32_t fresh = new_slot(page);
  if (entry.compare_exchange_strong(slot, fresh, std::memory_order_acq_rel)) return fresh;
  arena_.release(fresh);
  return slot;
}

uint32_t MapTree::new_slot(uint64_t page) {
  {
    const std::lock_guard lock(dirty_mutex_);
    if (dirty_pages_.capacity() <= pages_) dirty_pages_.reserve(2 * pages_ + 1);
    ++pages_;
  }
  return arena_.allocate(layer_, page);
}

void MapTree::mark_dirty(uint64_t page, uint32_t slot) {
  if (arena_.header(slot).mark.exchange(MapArena::kChanged) == MapArena::kChanged) return;
  const std::lock_guard lock(dirty_mutex_);
  dirty_pages_.push_back(page);
}

MapTree::Look MapTree::look(uint64_t page) {
  const Leaf& pages = leaf(page);
  const uint64_t in_leaf = page & ((1U << kLeafBits) - 1);
  const uint32_t slot = pages[in_leaf].load(std::memory_order_acquire);
  if (slot != 0) return {&arena_.page(slot), 1};
  return {nullptr, &pages == &empty_leaf_ ? pages.size() - in_leaf : 1};
}

MapArena::Page& MapTree::words_for_change(uint64_t page) {
  return arena_.page(slot_for_change(page));
}

PageCopy MapTree::copy(uint64_t page) {
  PageCopy copy{.page = page, .bits = {}};
  const uint32_t slot = slot_of(page);
  if (slot == 0) return copy;
  const MapArena::Page& words = arena_.page(slot);
  for (size_t i = 0; i < copy.bits.size(); ++i) copy.bits[i] = words[i].load();
  return copy;
}

std::vector<PageCopy> MapTree::take_dirty(uint64_t end) {
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
    if (end < (page + 1) * chunks_per_page_ && keep_below(page_copy, end, bits_per_chunk_)) {
      mark_dirty(page, slot);
    }
    copies.push_back(page_copy);
  }
  std::sort(copies.begin(), copies.end(),
            [](const PageCopy& a, const PageCopy& b) { return a.page < b.page; });
  return copies;
}

void MapTree::committed(const std::vector<uint64_t>& pages) {
  for (const uint64_t page : pages) {
    // Not of one that changed again meanwhile.
    uint32_t expected = MapArena::kCommitting;
    arena_.header(slot_of(page)).mark.compare_exchange_strong(expected, MapArena::kCommitted);
  }
}

void MapTree::put_back(const std::vector<uint64_t>& pages) {
  for (const uint64_t page : pages) mark_dirty(page, slot_for_change(page));
}

bool MapTree::dirty() {
  const std::lock_guard lock(dirty_mutex_);
  return !dirty_pages_.empty();
}

void MapTree::discard() {
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

void MapTree::clear_from(uint64_t first) {
  const std::lock_guard load_lock(load_mutex_);
  const uint64_t boundary = first / chunks_per_page_;
  const uint64_t in_word = kWordBits / bits_per_chunk_;
  for_each_leaf([&](Leaf& leaf, uint64_t first_page) {
    for (size_t i = 0; i < leaf.size(); ++i) {
      const uint64_t page = first_page + i;
      const uint32_t slot = leaf[i].load();
      if (page < boundary || slot == 0) continue;
      uint64_t keep = page == boundary ? first % chunks_per_page_ : 0;
      for (std::atomic<uint64_t>& word : arena_.page(slot)) {
        const uint64_t kept = std::min(keep, in_word);
        word.fetch_and(low_chunks(kept, bits_per_chunk_));
        keep -= kept;
      }
      if (page > boundary) arena_.header(slot).mark.store(MapArena::kCommitted);
    }
  });
  const std::lock_guard lock(dirty_mutex_);
  std::erase_if(dirty_pages_, [boundary](uint64_t page) { return page > boundary; });
}

}  // namespace cowfs
