// Layers whose chunks lie in slots
//
// The chunks of all images lie in the slots of one space, wherever the policy found room: the map
// says of each chunk which slot it has. Maps lie in the catalog's map_page, and which slots they
// name in all, in its pool_page. The transaction that changes the one changes the
// other, by what the page says now against what it said before: the bits of the catalog are the sum
// of its maps at any time, and free space is known without looking at a map.
//
// In memory a slot goes from free to taken when it is given to a chunk, and back when
//   1. no map says it any more, in memory
//   2. nor in the catalog, durably (I5)
//   3. nobody reads or writes it who had looked it up before: Image sees to that
// A chunk that is taken away and written again gets another slot, so one that has been committed is
// never written to but in place. What a server that was killed had given to chunks is claimed again
// by the maps that it left; what it had not written whole is free by itself. After a failed commit
// (I8) nobody can tell which of the two states the catalog will show: what was freed or given
// since stays taken until the store is opened again.
//
// One sync serves all layers, and one that fails is the failure of all that have written since they
// were last synced well: the host says it only once (I8).
//
// Not done: room is not reserved ahead of writes (fallocate), since a slot belongs to a chunk that
// is present.

#include "store/slot_layer.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "store/error.h"
#include "store/range_set.h"
#include "store/sabotage.h"
#include "store/slot_map.h"
#include "store/synchronized.h"

namespace cowfs {
namespace {

struct SlotChanges : Layer::Changes {
  std::vector<PageCopy> pages;
  std::vector<uint64_t> taken;  // pages whose marks were cleared
  std::vector<SlotRun> freed;
  std::vector<SlotRun> cut_off;  // by this commit itself
  std::optional<uint64_t> remove_pages_from;

  [[nodiscard]] bool empty() const override { return pages.empty() && !remove_pages_from; }
};

const SlotChanges& slotted(const Layer::Changes& changes) {
  return static_cast<const SlotChanges&>(changes);
}

uint64_t count_of(const std::vector<SlotRun>& runs) {
  uint64_t count = 0;
  for (const SlotRun& run : runs) count += run.count;
  return count;
}

class SlotLayer final : public Layer {
 public:
  SlotLayer(const PolicyContext& context, SlotSpace& space, ForgottenSlots& forgotten,
            const LayerRow& row)
      : Layer(row.parent_limit),
        chunk_(context.chunk),
        arena_(context.arena),
        catalog_(context.catalog),
        space_(space),
        forgotten_(forgotten),
        id_(row.id),
        synced_failures_(space.failures()),
        own_chunks_(static_cast<int64_t>(row.own_chunks)),
        // A server that was killed may have written what nobody synced (I3).
        data_dirty_(row.own_chunks > 0) {}

  void activate() override {
    const auto there = [this](const MapBits& bits) { return names_slots_that_are(bits); };
    map_ = std::make_unique<SlotMap>(
        arena_, id_, chunk_.chunk_of(kMaxImageSize),
        [this, there](uint64_t first, uint64_t count, const SlotMap::Receive& receive) {
          catalog_.load_pages(id_, first, count, there, receive);
        },
        there);
    end_page_ = 0;
    if (const auto last = catalog_.last_page(id_)) end_page_ = *last + 1;
    if (!data_dirty_) synced_failures_ = space_.failures();
    if (inherits()) inherit();
  }

  void deactivate() override { map_.reset(); }

  bool inherits() override { return arena_.has_found(id_); }

  void disinherit() override {
    for (const MapArena::Found& found : arena_.take_found(id_)) arena_.release(found.slot);
  }

  std::optional<std::string> damage() override { return std::nullopt; }

  Run find(uint64_t offset, uint64_t length) override {
    const uint64_t first = chunk_.chunk_of(offset);
    const uint64_t last = chunk_.chunk_of(offset + length - 1);
    const SlotMap::Run run = map_->run(first, last - first + 1);
    const uint64_t end = std::min(offset + length, chunk_.offset_of(first + run.count));
    if (run.state != ChunkState::present) return {run.state, end - offset, nullptr, 0};
    return run_at(run.slot, run.state, end - offset, offset - chunk_.offset_of(first));
  }

  Run place(uint64_t offset, uint64_t length) override {
    const uint64_t chunk = chunk_.chunk_of(offset);
    std::vector<uint64_t> goals;
    if (chunk > 0) {
      const SlotMap::Run before = map_->run(chunk - 1, 1);
      if (before.state == ChunkState::present) goals.push_back(before.slot + 1);
    }
    goals.push_back(goal_.load());
    const auto slots = space_.allocate(chunk_.chunk_of(length), goals);
    if (!slots) {
      throw Error::with_message(
          ENOSPC,
          space_.title() + ": is full: enlarge it with cowfs pool grow, or remove or trim images");
    }
    goal_ = slots->first + slots->count;
    own_chunks_ += static_cast<int64_t>(slots->count);
    return run_at(slots->first, ChunkState::absent, chunk_.offset_of(slots->count), 0);
  }

  void give_up(uint64_t /*offset*/, const Run& place) override {
    give_back_slots({slots_of(place)});
  }

  void set_present(uint64_t offset, const Run& place) override {
    note_write();
    const uint64_t first = chunk_.chunk_of(offset);
    const SlotRun slots = slots_of(place);
    raise_end_page(first + slots.count);
    map_->set_present(first, slots.count, slots.first);
  }

  void take_away(uint64_t offset, uint64_t length, ChunkState state) override {
    const uint64_t first = chunk_.chunk_of(offset);
    const uint64_t count = chunk_.chunk_of(length);
    // What is in that state already costs no map page.
    const SlotMap::Run run = map_->run(first, count);
    if (run.state == state && run.count == count && state != ChunkState::present) return;
    raise_end_page(first + count);
    std::vector<SlotRun> freed;
    map_->take_away(first, count, state, freed);
    if (sabotaged(Sabotage::reuse_at_once)) {
      give_back_slots(freed);
      return;
    }
    add_freed(freed);
  }

  void reserve(uint64_t /*offset*/, uint64_t /*length*/) override {
    throw Error::with_message(EOPNOTSUPP, "reserving space in a pool");
  }

  void note_write() override { data_dirty_ = true; }

  bool dirty() override {
    {
      const std::lock_guard lock(mutex_);
      if (!freed_.empty()) return true;
    }
    return map_->dirty();
  }
  bool unsynced() override { return data_dirty_.load(); }

  std::unique_ptr<Changes> prepare(uint64_t size) override { return take_changes(size); }

  std::unique_ptr<Changes> prepare_cut(uint64_t size) override {
    std::unique_ptr<SlotChanges> changes = take_changes(size);
    const uint64_t first_gone = chunk_.chunk_of(chunk_.up(size));
    const uint64_t boundary = first_gone / SlotMap::kChunksInPage;
    std::erase_if(changes->pages, [&](const PageCopy& copy) { return copy.page >= boundary; });
    if (first_gone % SlotMap::kChunksInPage != 0) {
      PageCopy kept = map_->copy(boundary);
      keep_below(kept, first_gone, SlotMap::kBits);
      changes->pages.push_back(kept);
    }
    changes->remove_pages_from = (first_gone + SlotMap::kChunksInPage - 1) / SlotMap::kChunksInPage;
    for_each_present(first_gone, [&](uint64_t, const SlotMap::Run& run) {
      changes->cut_off.push_back({run.slot, run.count});
    });
    cutting_ = true;
    return changes;
  }

  void sync_data() override {
    if (!data_dirty_.exchange(false)) return;
    space_.sync();
    // Also of a failure between the writes and this sync, which then knows nothing of it.
    if (space_.failures() != synced_failures_) {
      throw Error::with_message(EIO, space_.title() +
                                         ": a sync of it failed, and with it what was written to "
                                         "this image may be lost");
    }
  }

  void publish(Catalog::Change& change, const Changes& changes) override {
    const SlotChanges& copies = slotted(changes);
    SlotDifference difference;
    for (const PageCopy& copy : copies.pages) {
      const bool live = sabotaged(Sabotage::commit_live_page);
      const MapBits bits = live ? map_->copy(copy.page).bits : copy.bits;
      add_difference(change.map_page(id_, copy.page), bits, difference);
      change.put_page(id_, copy.page, bits);
    }
    if (copies.remove_pages_from) {
      change.for_each_page(id_, *copies.remove_pages_from, [&](const MapBits& bits) {
        add_difference(bits, MapBits{}, difference);
      });
      change.remove_pages_from(id_, *copies.remove_pages_from);
    }
    change.use_slots(difference.used, true);
    change.use_slots(difference.freed, false);
    change.add_own_chunks(id_, static_cast<int64_t>(count_of(difference.used)) -
                                   static_cast<int64_t>(count_of(difference.freed)));
  }

  void committed() override { map_->committed(std::exchange(taken_, {})); }

  void put_back(const Changes& changes) override {
    const SlotChanges& copies = slotted(changes);
    map_->put_back(copies.taken);
    cutting_ = false;  // what was to be cut off is there still
    add_freed(copies.freed);
  }

  void discard() override {
    cutting_ = false;
    data_dirty_ = false;
    synced_failures_ = space_.failures();
    {
      const std::lock_guard lock(mutex_);
      freed_.clear();
    }
    map_->discard();
    // What could not be written is in the host's cache still, and would be seen until it is gone.
    space_.drop_cached();
  }

  void cut(uint64_t size) override {
    const uint64_t first_gone = chunk_.chunk_of(chunk_.up(size));
    if (!std::exchange(cutting_, false)) {
      // Chunks of writes that an earlier process did not answer: the catalog never knew of them.
      std::vector<SlotRun> freed;
      for_each_present(first_gone, [&](uint64_t, const SlotMap::Run& run) {
        for (uint64_t i = 0; i < run.count; ++i) {
          if (inherited_.contains(run.slot + i)) add_slot(freed, run.slot + i);
        }
      });
      give_back_slots(freed);
    }
    inherited_.clear();
    map_->clear_from(first_gone);
  }

  bool frees(const Changes& changes) const override {
    return !slotted(changes).freed.empty() || !slotted(changes).cut_off.empty();
  }

  // No chunk has a place of its own here: what was freed is nobody's, and need not be held.
  void give_back(const Changes& changes, const HoldChunks& /*hold*/) override {
    give_back_slots(slotted(changes).freed);
    give_back_slots(slotted(changes).cut_off);
  }

  void reclaim(uint64_t /*offset*/, uint64_t /*length*/) override {}

  std::optional<Flaw> next_flaw(uint64_t offset, uint64_t length) override {
    if (!space_.shows_holes()) return std::nullopt;
    const uint64_t end = offset + length;
    while (offset < end) {
      const Run run = find(offset, end - offset);
      if (run.state == ChunkState::present) {
        const std::optional<uint64_t> data = run.file->next_data(run.file_offset);
        const uint64_t hole = data.value_or(UINT64_MAX) - run.file_offset;
        if (hole > 0) return Flaw{Flaw::Kind::lost, offset, std::min(run.length, hole)};
        const uint64_t filled = run.file->next_hole(run.file_offset) - run.file_offset;
        offset += std::min(run.length, std::max<uint64_t>(filled, 1));
      } else {
        offset += run.length;
      }
    }
    return std::nullopt;
  }

  uint64_t space_end() const override { return 0; }

  uint64_t own_bytes() const override {
    return chunk_.offset_of(static_cast<uint64_t>(std::max<int64_t>(own_chunks_.load(), 0)));
  }

  std::optional<std::string> cow_path() const override { return std::nullopt; }

  void remove_files() override {
    RangeSet slots;
    const auto add = [&](const std::vector<SlotRun>& runs) {
      for (const SlotRun& run : runs) slots.add(run.first, run.count);
    };
    if (auto forgotten = forgotten_.lock(); forgotten->contains(id_)) {
      add(forgotten->at(id_));
      forgotten->erase(id_);
    }
    if (map_ != nullptr) {
      for_each_present(0,
                       [&](uint64_t, const SlotMap::Run& run) { slots.add(run.slot, run.count); });
    }
    {
      const std::lock_guard lock(mutex_);
      add(freed_);
      freed_.clear();
    }
    std::vector<SlotRun> runs;
    for (const auto& [first, count] : slots.ranges()) runs.push_back({first, count});
    give_back_slots(runs);
  }

 private:
  std::unique_ptr<SlotChanges> take_changes(uint64_t size) {
    auto changes = std::make_unique<SlotChanges>();
    {
      // Before the copies: what was taken away before is not in them.
      const std::lock_guard lock(mutex_);
      changes->freed = std::exchange(freed_, {});
    }
    changes->pages = map_->take_dirty(chunk_.chunk_of(chunk_.up(size)));
    for (const PageCopy& copy : changes->pages) changes->taken.push_back(copy.page);
    taken_ = changes->taken;
    return changes;
  }

  /// Goes on where an earlier process was killed: what it had given to chunks and not committed is
  /// claimed, and what it had taken away is to be given back after the next commit.
  void inherit() {
    const std::vector<MapArena::Found> pages = arena_.take_found(id_);
    SlotDifference difference;
    try {
      for (const MapArena::Found& found : pages) add_inherited(found, difference);
    } catch (...) {
      for (const MapArena::Found& found : pages) arena_.release(found.slot);
      throw;
    }
    map_->adopt(pages);
    data_dirty_ = true;
    for (const MapArena::Found& found : pages)
      raise_end_page((found.page + 1) * SlotMap::kChunksInPage);
    std::vector<SlotRun> claimed;
    for (const SlotRun& run : difference.used) {
      if (!space_.claim(run)) {
        space_.give_back(claimed);
        inherited_.clear();
        throw Error::with_message(EUCLEAN, "the map of layer " + std::to_string(id_) +
                                               " in memory names slots that are not its own");
      }
      claimed.push_back(run);
      for (uint64_t i = 0; i < run.count; ++i) inherited_.insert(run.first + i);
    }
    own_chunks_ += static_cast<int64_t>(count_of(claimed));
    add_freed(difference.freed);
  }

  /// What a page that was found says otherwise than the catalog.
  void add_inherited(const MapArena::Found& found, SlotDifference& difference) {
    MapBits now{};
    for (size_t i = 0; i < now.size(); ++i) now[i] = arena_.page(found.slot)[i].load();
    MapBits before{};
    catalog_.load_pages(
        id_, found.page, 1, [](const MapBits&) { return true; },
        [&](uint64_t, const MapBits& bits) { before = bits; });
    add_difference(before, now, difference);
  }

  bool names_slots_that_are(const MapBits& bits) const {
    for (uint64_t i = 0; i < SlotMap::kChunksInPage; ++i) {
      const uint32_t entry = SlotMap::entry(bits, i);
      if (SlotMap::is_present(entry) && !space_.has(SlotMap::slot_of_entry(entry))) return false;
    }
    return true;
  }

  /// What lies `skip` bytes behind the beginning of a slot.
  [[nodiscard]] Run run_at(uint64_t slot, ChunkState state, uint64_t length, uint64_t skip) const {
    const auto [file, offset] = space_.at(slot);
    return {state, length, file, offset + skip, slot};
  }

  [[nodiscard]] SlotRun slots_of(const Run& place) const {
    return {place.number, chunk_.chunk_of(place.length)};
  }

  /// Calls `visit` with each run of present chunks from `first` on.
  template <typename Visit>
  void for_each_present(uint64_t first, const Visit& visit) {
    const uint64_t end = end_page_.load() * SlotMap::kChunksInPage;
    while (first < end) {
      const SlotMap::Run run = map_->run(first, end - first);
      if (run.state == ChunkState::present) visit(first, run);
      first += run.count;
    }
  }

  void raise_end_page(uint64_t end_chunk) {
    const uint64_t end = (end_chunk + SlotMap::kChunksInPage - 1) / SlotMap::kChunksInPage;
    uint64_t old = end_page_.load();
    while (old < end && !end_page_.compare_exchange_weak(old, end)) {
    }
  }

  void add_freed(const std::vector<SlotRun>& runs) {
    const std::lock_guard lock(mutex_);
    freed_.insert(freed_.end(), runs.begin(), runs.end());
  }

  void give_back_slots(const std::vector<SlotRun>& runs) {
    own_chunks_ -= static_cast<int64_t>(count_of(runs));
    space_.give_back(runs);
  }

  const ChunkSize chunk_;
  MapArena& arena_;
  Catalog& catalog_;
  SlotSpace& space_;
  ForgottenSlots& forgotten_;
  const uint64_t id_;

  // Of the committing thread:
  std::vector<uint64_t> taken_;   // pages that were prepared last
  bool cutting_ = false;          // by the commit that is under way
  uint64_t synced_failures_;      // of the pool, when this layer had nothing unsynced last
  std::set<uint64_t> inherited_;  // slots that the catalog had not; until `cut`

  std::unique_ptr<SlotMap> map_;
  std::atomic<uint64_t> end_page_ = 0;       // nothing is present from there on
  std::atomic<uint64_t> goal_ = UINT64_MAX;  // behind the slot that was given last
  std::atomic<int64_t> own_chunks_;          // slots that are taken for this layer
  std::atomic<bool> data_dirty_;
  std::mutex mutex_;            // guards freed_
  std::vector<SlotRun> freed_;  // since the last prepare
};

}  // namespace

SlotPolicy::SlotPolicy(const PolicyContext& context, SlotSpace& space)
    : context_(context), slot_space_(space) {}

std::unique_ptr<Layer> SlotPolicy::layer(const LayerRow& row) {
  return std::make_unique<SlotLayer>(context_, slot_space_, forgotten_, row);
}

void SlotPolicy::forget(Catalog::Change& change, uint64_t layer) {
  SlotDifference difference;
  change.for_each_page(layer, 0,
                       [&](const MapBits& bits) { add_difference(bits, MapBits{}, difference); });
  change.use_slots(difference.freed, false);
  forgotten_.lock()->insert_or_assign(layer, std::move(difference.freed));
}

}  // namespace cowfs
