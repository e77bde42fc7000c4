// Layers whose chunks lie in slots
//
// The chunks of an image lie in the slots of a space, of its own or of all, wherever the policy
// found room: the map says of each chunk which slot it has. Where the map lies when it is
// committed, the policy says too: that is called the committed map here.
//
// In memory a slot goes from free to taken when it is given to a chunk, and back when
//   1. no map says it any more, in memory
//   2. nor the committed map, durably (I5)
//   3. nobody reads or writes it who had looked it up before: Image sees to that
// A chunk that is taken away and written again gets another slot, so one that has been committed is
// never written to but in place. What a server that was killed had given to chunks is claimed again
// by the maps that it left; what it had not written whole is free by itself. After a failed commit
// (I8) nobody can tell which of the two states will be found: what was freed or given
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
#include <mutex>
#include <utility>
#include <vector>

#include "store/error.h"
#include "store/range_set.h"
#include "store/sabotage.h"

namespace cowfs {

SlotLayer::SlotLayer(ChunkSize chunk, MapArena& arena, SlotSpace& space, const LayerRow& row)
    : Layer(row.parent_limit),
      chunk_(chunk),
      arena_(arena),
      space_(space),
      id_(row.id),
      synced_failures_(space.failures()),
      own_chunks_(static_cast<int64_t>(row.own_chunks)),
      // A server that was killed may have written what nobody synced (I3).
      data_dirty_(row.own_chunks > 0) {}

void SlotLayer::activate() {
  const auto there = [this](const MapBits& bits) { return names_slots_that_are(bits); };
  map_ = std::make_unique<SlotMap>(
      arena_, id_, chunk_.chunk_of(kMaxImageSize),
      [this, there](uint64_t first, uint64_t count, const SlotMap::Receive& receive) {
        load_pages(first, count, there, receive);
      },
      there);
  end_page_ = 0;
  if (const auto last = last_page()) end_page_ = *last + 1;
  if (!data_dirty_) synced_failures_ = space_.failures();
  if (inherits()) inherit();
}

void SlotLayer::disinherit() {
  for (const MapArena::Found& found : arena_.take_found(id_)) arena_.release(found.slot);
}

Run SlotLayer::find(uint64_t offset, uint64_t length) {
  const uint64_t first = chunk_.chunk_of(offset);
  const uint64_t last = chunk_.chunk_of(offset + length - 1);
  const SlotMap::Run run = map_->run(first, last - first + 1);
  const uint64_t end = std::min(offset + length, chunk_.offset_of(first + run.count));
  if (run.state != ChunkState::present) return {run.state, end - offset, nullptr, 0};
  return run_at(run.slot, run.state, end - offset, offset - chunk_.offset_of(first));
}

Run SlotLayer::place(uint64_t offset, uint64_t length) {
  const uint64_t chunk = chunk_.chunk_of(offset);
  std::optional<uint64_t> goal;
  if (chunk > 0) {
    const SlotMap::Run before = map_->run(chunk - 1, 1);
    if (before.state == ChunkState::present) goal = before.slot + 1;
  }
  const auto slots = space_.allocate(chunk_.chunk_of(length), goal, stream_);
  if (!slots) {
    throw Error::with_message(
        ENOSPC,
        space_.title() + ": is full: enlarge it with cowfs pool grow, or remove or trim images");
  }
  own_chunks_ += static_cast<int64_t>(slots->count);
  return run_at(slots->first, ChunkState::absent, chunk_.offset_of(slots->count), 0);
}

void SlotLayer::give_up(uint64_t /*offset*/, const Run& place) {
  give_back_slots({slots_of(place)});
}

void SlotLayer::set_present(uint64_t offset, const Run& place) {
  note_write();
  const uint64_t first = chunk_.chunk_of(offset);
  const SlotRun slots = slots_of(place);
  raise_end_page(first + slots.count);
  map_->set_present(first, slots.count, slots.first);
}

void SlotLayer::take_away(uint64_t offset, uint64_t length, ChunkState state) {
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

void SlotLayer::reserve(uint64_t /*offset*/, uint64_t /*length*/) {
  throw Error::with_message(EOPNOTSUPP, "reserving space in slots");
}

bool SlotLayer::dirty() {
  {
    const std::lock_guard lock(mutex_);
    if (!freed_.empty()) return true;
  }
  return map_->dirty();
}
std::unique_ptr<Layer::Changes> SlotLayer::prepare(uint64_t size) { return take_changes(size); }

std::unique_ptr<Layer::Changes> SlotLayer::prepare_cut(uint64_t size) {
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

void SlotLayer::sync_data() {
  if (!data_dirty_.exchange(false)) return;
  space_.sync();
  // Also of a failure between the writes and this sync, which then knows nothing of it.
  if (space_.failures() != synced_failures_) {
    throw Error::with_message(EIO, space_.title() +
                                       ": a sync of it failed, and with it what was written to "
                                       "this image may be lost");
  }
}

void SlotLayer::put_back(const Changes& changes) {
  const SlotChanges& copies = slotted(changes);
  map_->put_back(copies.taken);
  cutting_ = false;  // what was to be cut off is there still
  add_freed(copies.freed);
}

void SlotLayer::discard() {
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

void SlotLayer::cut(uint64_t size) {
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

bool SlotLayer::frees(const Changes& changes) const {
  return !slotted(changes).freed.empty() || !slotted(changes).cut_off.empty();
}

// No chunk has a place of its own here: what was freed is nobody's, and need not be held.
void SlotLayer::give_back(const Changes& changes, const HoldChunks& /*hold*/) {
  give_back_slots(slotted(changes).freed);
  give_back_slots(slotted(changes).cut_off);
}

std::optional<Flaw> SlotLayer::next_flaw(uint64_t offset, uint64_t length) {
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

uint64_t SlotLayer::own_bytes() const {
  return chunk_.offset_of(static_cast<uint64_t>(std::max<int64_t>(own_chunks_.load(), 0)));
}

void SlotLayer::remove_files() {
  RangeSet slots;
  const auto add = [&](const std::vector<SlotRun>& runs) {
    for (const SlotRun& run : runs) slots.add(run.first, run.count);
  };
  add(take_forgotten());
  if (map_ != nullptr) {
    for_each_present(0, [&](uint64_t, const SlotMap::Run& run) { slots.add(run.slot, run.count); });
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

std::unique_ptr<SlotChanges> SlotLayer::take_changes(uint64_t size) {
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
void SlotLayer::inherit() {
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
void SlotLayer::add_inherited(const MapArena::Found& found, SlotDifference& difference) {
  MapBits now{};
  for (size_t i = 0; i < now.size(); ++i) now[i] = arena_.page(found.slot)[i].load();
  MapBits before{};
  load_pages(
      found.page, 1, [](const MapBits&) { return true; },
      [&](uint64_t, const MapBits& bits) { before = bits; });
  add_difference(before, now, difference);
}

bool SlotLayer::names_slots_that_are(const MapBits& bits) const {
  for (uint64_t i = 0; i < SlotMap::kChunksInPage; ++i) {
    const uint32_t entry = SlotMap::entry(bits, i);
    if (SlotMap::is_present(entry) && !space_.has(SlotMap::slot_of_entry(entry))) return false;
  }
  return true;
}

/// What lies `skip` bytes behind the beginning of a slot.
Run SlotLayer::run_at(uint64_t slot, ChunkState state, uint64_t length, uint64_t skip) const {
  const auto [file, offset] = space_.at(slot);
  return {state, length, file, offset + skip, slot};
}

/// Calls `visit` with each run of present chunks from `first` on.
template <typename Visit>
void SlotLayer::for_each_present(uint64_t first, const Visit& visit) {
  const uint64_t end = end_page_.load() * SlotMap::kChunksInPage;
  while (first < end) {
    const SlotMap::Run run = map_->run(first, end - first);
    if (run.state == ChunkState::present) visit(first, run);
    first += run.count;
  }
}

void SlotLayer::raise_end_page(uint64_t end_chunk) {
  const uint64_t end = (end_chunk + SlotMap::kChunksInPage - 1) / SlotMap::kChunksInPage;
  uint64_t old = end_page_.load();
  while (old < end && !end_page_.compare_exchange_weak(old, end)) {
  }
}

void SlotLayer::add_freed(const std::vector<SlotRun>& runs) {
  const std::lock_guard lock(mutex_);
  freed_.insert(freed_.end(), runs.begin(), runs.end());
}

void SlotLayer::give_back_slots(const std::vector<SlotRun>& runs) {
  own_chunks_ -= static_cast<int64_t>(count_of(runs));
  space_.give_back(runs);
}

}  // namespace cowfs
