// What the catalog has of a pool: how many slots there are, and which are in use, a bit each, in
// pages of 4096; slot s has bit s mod 64 of word (s mod 4096) / 64 of page s / 4096.

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "store/catalog.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr uint64_t kSlotsPerPage = kMapWords * 64;

MapBits bits_of_blob(std::span<const std::byte> blob, const std::string& path,
                     const std::string& what) {
  MapBits bits{};
  if (blob.size() != sizeof(bits)) {
    throw Error::with_message(EUCLEAN, path + ": damaged: " + what);
  }
  std::memcpy(bits.data(), blob.data(), sizeof(bits));
  return bits;
}

bool is_empty(const MapBits& bits) {
  return std::all_of(bits.begin(), bits.end(), [](uint64_t word) { return word == 0; });
}

}  // namespace

uint64_t Catalog::pool_slots() {
  const std::lock_guard lock(mutex_);
  Statement select = database_.prepare("SELECT slots FROM pool WHERE id = 1");
  if (!select.step()) {
    throw Error::with_message(EUCLEAN, path() + ": damaged: no row in table pool");
  }
  const int64_t slots = select.integer(0);
  if (slots < 1 || slots > static_cast<int64_t>(SlotMap::kMostSlots)) {
    throw Error::with_message(EUCLEAN,
                              path() + ": damaged: a pool of " + std::to_string(slots) + " slots");
  }
  return static_cast<uint64_t>(slots);
}

PoolGeneration Catalog::pool_generation() {
  const std::lock_guard lock(mutex_);
  Statement select = database_.prepare("SELECT generation, previous FROM pool WHERE id = 1");
  const bool there = select.step();
  if (!there || select.integer(0) < 1 || select.integer(1) < 0) {
    throw Error::with_message(EUCLEAN, path() + ": damaged: table pool says no generation");
  }
  return {.now = static_cast<uint64_t>(select.integer(0)),
          .before = static_cast<uint64_t>(select.integer(1))};
}

void Catalog::load_used_slots(const std::function<void(SlotRun run)>& receive) {
  const std::lock_guard lock(mutex_);
  Statement select = database_.prepare("SELECT page, bits FROM pool_page ORDER BY page");
  std::vector<SlotRun> run;
  while (select.step()) {
    const auto page = static_cast<uint64_t>(select.integer(0));
    if (page > SlotMap::kMostSlots / kSlotsPerPage) {
      throw Error::with_message(
          EUCLEAN, path() + ": damaged: pool page " + std::to_string(select.integer(0)));
    }
    const MapBits bits = bits_of_blob(select.blob(1), path(), "pool page " + std::to_string(page));
    for (uint64_t i = 0; i < kSlotsPerPage; ++i) {
      if ((bits[i / 64] >> (i % 64) & 1U) == 0) continue;
      const uint64_t slot = page * kSlotsPerPage + i;
      if (!run.empty() && run.back().first + run.back().count != slot) {
        receive(run.back());
        run.clear();
      }
      add_slot(run, slot);
    }
  }
  if (!run.empty()) receive(run.back());
}

MapBits Catalog::Change::map_page(uint64_t layer, uint64_t page) {
  Statement& select = *catalog_.load_pages_;
  struct Reset {
    Statement& statement;
    ~Reset() { statement.reset(); }
  } const reset{select};
  const auto number = static_cast<int64_t>(page);
  select.bind(1, static_cast<int64_t>(layer)).bind(2, number).bind(3, number + 1);
  if (!select.step()) return {};
  return bits_of_blob(select.blob(1), catalog_.path(),
                      "map page " + std::to_string(page) + " of layer " + std::to_string(layer));
}

void Catalog::Change::for_each_page(uint64_t layer, uint64_t first,
                                    const std::function<void(const MapBits&)>& visit) {
  Statement select =
      catalog_.database_.prepare("SELECT page, bits FROM map_page WHERE layer = ? AND page >= ?");
  select.bind(1, static_cast<int64_t>(layer)).bind(2, static_cast<int64_t>(first));
  while (select.step()) {
    visit(bits_of_blob(
        select.blob(1), catalog_.path(),
        "map page " + std::to_string(select.integer(0)) + " of layer " + std::to_string(layer)));
  }
}

void Catalog::Change::use_slots(std::span<const SlotRun> runs, bool in_use) {
  std::map<uint64_t, MapBits> pages;
  for (const SlotRun& run : runs) {
    for (uint64_t slot = run.first; slot < run.first + run.count; ++slot) {
      const uint64_t page = slot / kSlotsPerPage;
      auto found = pages.find(page);
      if (found == pages.end()) {
        Statement select = catalog_.database_.prepare("SELECT bits FROM pool_page WHERE page = ?");
        select.bind(1, static_cast<int64_t>(page));
        MapBits bits{};
        if (select.step()) {
          bits = bits_of_blob(select.blob(0), catalog_.path(), "pool page " + std::to_string(page));
        }
        found = pages.emplace(page, bits).first;
      }
      uint64_t& word = found->second[slot % kSlotsPerPage / 64];
      const uint64_t bit = uint64_t{1} << (slot % 64);
      if (((word & bit) != 0) == in_use) {
        throw Error::with_message(EUCLEAN, catalog_.path() + ": damaged: slot " +
                                               std::to_string(slot) + " of the pool is " +
                                               (in_use ? "in use already" : "free already"));
      }
      word ^= bit;
    }
  }
  Statement put =
      catalog_.database_.prepare("INSERT OR REPLACE INTO pool_page (page, bits) VALUES (?, ?)");
  for (const auto& [page, bits] : pages) {
    if (is_empty(bits)) {
      catalog_.database_.prepare("DELETE FROM pool_page WHERE page = ?")
          .bind(1, static_cast<int64_t>(page))
          .run();
      continue;
    }
    put.bind(1, static_cast<int64_t>(page)).bind(2, std::as_bytes(std::span(bits))).run();
  }
}

void Catalog::Change::add_own_chunks(uint64_t layer, int64_t chunks) {
  if (chunks == 0) return;
  catalog_.database_.prepare("UPDATE layer SET own_chunks = own_chunks + ? WHERE id = ?")
      .bind(1, chunks)
      .bind(2, static_cast<int64_t>(layer))
      .run();
}

void Catalog::Change::set_pool_slots(uint64_t slots) {
  catalog_.database_.prepare("UPDATE pool SET slots = ? WHERE id = 1")
      .bind(1, static_cast<int64_t>(slots))
      .run();
}

void Catalog::Change::set_pool_generation(const PoolGeneration& generation) {
  catalog_.database_.prepare("UPDATE pool SET generation = ?, previous = ? WHERE id = 1")
      .bind(1, static_cast<int64_t>(generation.now))
      .bind(2, static_cast<int64_t>(generation.before))
      .run();
}

}  // namespace cowfs
