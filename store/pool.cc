#include "store/pool.h"

#include <algorithm>
#include <cerrno>
#include <string>

#include "store/catalog.h"
#include "store/error.h"
#include "store/sabotage.h"

namespace cowfs {
namespace {

/// What one layer gets at a time: enough for reads of a MiB each to follow each other on the disk.
uint64_t region_slots(ChunkSize chunk) {
  constexpr uint64_t kRegionBytes = 8 << 20;
  constexpr uint64_t kLeast = 64;
  return std::max(kRegionBytes / chunk.bytes(), kLeast);
}

}  // namespace

Pool::Pool(const PoolFile& file, ChunkSize chunk, Catalog& catalog)
    : file_(file),
      chunk_(chunk),
      catalog_(catalog),
      // Nothing is as large as a stranger's catalog may say.
      slots_(file.require_room(catalog.pool_slots(), chunk), region_slots(chunk)) {
  catalog.load_used_slots([&](SlotRun run) {
    if (!slots_.claim(run)) {
      throw Error::with_message(EUCLEAN, catalog.path() +
                                             ": damaged: slots are in use that the pool does not "
                                             "have");
    }
  });
}

void Pool::sync() {
  syncs_.run([this] {
    try {
      if (!sabotaged(Sabotage::no_data_sync)) file_.file().sync_data();
    } catch (const Error&) {
      ++failures_;
      throw;
    }
  });
}

void Pool::give_back(std::span<const SlotRun> runs) {
  for (const SlotRun& run : runs) {
    if (!can_punch_.load()) break;
    try {
      file_.file().punch(at(run.first).offset, chunk_.offset_of(run.count));
    } catch (const Error&) {
      // The host keeps the space; the slots are as good as before.
      can_punch_ = false;
    }
  }
  slots_.release(runs);
}

Space Pool::space() {
  const uint64_t free = chunk_.offset_of(slots_.free_slots());
  return {.total = chunk_.offset_of(slots_.slots()), .free = free, .available = free};
}

void Pool::set_slots(uint64_t slots) {
  catalog_.change([&](Catalog::Change& change) { change.set_pool_slots(slots); });
  slots_.grow(slots);
}

void Pool::grow(std::optional<uint64_t> bytes) {
  const std::string title = this->title();
  if (file_.is_device()) {
    if (bytes) {
      throw Error::with_message(EINVAL, title + ": is a device: enlarge it, then say no SIZE");
    }
    if (!take_over_growth()) {
      throw Error::with_message(EINVAL, title + ": the device has not grown");
    }
    return;
  }
  if (!bytes) throw Error::with_message(EINVAL, title + ": is a file: say how large it is to be");
  const std::lock_guard lock(grow_mutex_);
  const uint64_t slots = chunk_.chunk_of(*bytes);
  if (slots > SlotMap::kMostSlots) {
    const uint64_t most = chunk_.offset_of(uint64_t{1} << 32U) >> 40U;
    throw Error::with_message(ERANGE, title + ": with chunks of " + std::to_string(chunk_.bytes()) +
                                          " bytes a pool has to be smaller than " +
                                          std::to_string(most) + " TiB");
  }
  if (slots <= slots_.slots()) {
    throw Error::with_message(
        EINVAL, title + ": has " + std::to_string(chunk_.offset_of(slots_.slots())) +
                    (slots == slots_.slots() ? " bytes already"
                                             : " bytes, and a pool does not become smaller"));
  }
  // The file first: the catalog never says more than there is.
  if (file_.slots_that_fit(chunk_) < slots) file_.make_room(slots, chunk_);
  set_slots(slots);
}

bool Pool::take_over_growth() {
  const std::lock_guard lock(grow_mutex_);
  const uint64_t fit = std::min(file_.slots_that_fit(chunk_), SlotMap::kMostSlots);
  if (!file_.is_device() || fit <= slots_.slots()) return false;
  set_slots(fit);
  return true;
}

}  // namespace cowfs
