// The slots of a pool, by the catalog
//
// Each map page is read once, and a bit is set for each slot that it names. A bit that is set
// already is a slot that two chunks have: what is written to one shows in the other. Only then is
// it looked at which layers that are. The rest is a comparison of bits with those of pool_page: one
// more there is lost space, one fewer a slot that would be given away while it is in use.

#include "store/check_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "store/policy.h"
#include "store/slot_map.h"

namespace cowfs {
namespace {

using Severity = Finding::Severity;

constexpr uint64_t kSlotsInPage = kMapWords * 64;
constexpr const char* kCatalogBack = "put catalog.db back from a copy";

class SlotCheck {
 public:
  SlotCheck(Database& database, CheckedCatalog& catalog, bool in_use, const RepairCatalog& repair,
            CheckReport& report)
      : database_(database), catalog_(catalog), in_use_(in_use), repair_(repair), report_(report) {}

  void run() {
    if (!read_size()) return;
    read_maps();
    if (!twice_.empty()) find_sharers();
    compare_bits();
    compare_counts();
  }

 private:
  void damage(const std::string& image, uint64_t layer, const char* kind, const std::string& what,
              const std::string& remedy) {
    report_.add({.severity = Severity::damage,
                 .kind = kind,
                 .image = image,
                 .layer = layer,
                 .what = what,
                 .remedy = remedy});
  }

  bool read_size() {
    if (!catalog_.policy->has_pool) return true;
    Statement select =
        database_.prepare("SELECT slots, generation, previous FROM pool WHERE id = 1");
    const bool there = select.step();
    const int64_t slots = there ? select.integer(0) : 0;
    if (slots < 1 || slots > static_cast<int64_t>(SlotMap::kMostSlots)) {
      damage("", 0, "catalog_rows", "catalog: it does not say how large the pool is", kCatalogBack);
      return false;
    }
    if (select.integer(1) < 1 || select.integer(2) < 0) {
      damage("", 0, "catalog_rows", "catalog: it does not say when the pool was used last",
             kCatalogBack);
    } else {
      catalog_.pool = {.now = static_cast<uint64_t>(select.integer(1)),
                       .before = static_cast<uint64_t>(select.integer(2))};
    }
    slots_ = static_cast<uint64_t>(slots);
    return true;
  }

  /// Calls `visit` with (layer, slot) of each chunk of the layers that count.
  template <typename Visit>
  void for_each_slot(const Visit& visit) {
    Statement select = database_.prepare("SELECT layer, bits FROM map_page ORDER BY layer");
    while (select.step()) {
      report_.require_wanted();
      const auto found = catalog_.layers.find(static_cast<uint64_t>(select.integer(0)));
      if (found == catalog_.layers.end() || found->second.removed) continue;
      MapBits bits{};
      const std::span<const std::byte> blob = select.blob(1);
      if (blob.size() != sizeof(bits)) continue;  // told of before
      std::memcpy(bits.data(), blob.data(), sizeof(bits));
      for (uint64_t i = 0; i < SlotMap::kChunksInPage; ++i) {
        const uint32_t entry = SlotMap::entry(bits, i);
        if (SlotMap::is_present(entry)) visit(found->second, SlotMap::slot_of_entry(entry));
      }
    }
  }

  void read_maps() {
    std::set<uint64_t> astray;
    for_each_slot([&](CheckedLayer& layer, uint64_t slot) {
      if (slot >= slots_) {
        layer.sound = false;
        astray.insert(layer.row.id);
        return;
      }
      ++counts_[layer.row.id];
      uint64_t& word = named_[slot / kSlotsInPage][slot % kSlotsInPage / 64];
      const uint64_t bit = uint64_t{1} << (slot % 64);
      if ((word & bit) != 0) twice_.insert(slot);
      word |= bit;
    });
    for (const uint64_t id : astray) {
      damage(catalog_.layers.at(id).image, id, "bad_map",
             "its map names slots that the pool does not have", kCatalogBack);
    }
  }

  void find_sharers() {
    std::map<uint64_t, std::set<uint64_t>> layers_of;  // by slot
    std::map<uint64_t, uint64_t> chunks;               // by layer
    for_each_slot([&](CheckedLayer& layer, uint64_t slot) {
      if (!twice_.contains(slot)) return;
      layers_of[slot].insert(layer.row.id);
      ++chunks[layer.row.id];
    });
    for (const auto& [id, count] : chunks) {
      CheckedLayer& layer = catalog_.layers.at(id);
      layer.sound = false;
      std::set<std::string> others;
      for (const auto& [slot, layers] : layers_of) {
        if (!layers.contains(id)) continue;
        for (const uint64_t other : layers) {
          if (other != id) others.insert(catalog_.layers.at(other).image);
        }
      }
      std::string with;
      for (const std::string& other : others) with += (with.empty() ? "" : ", ") + other;
      damage(layer.image, id, "shared_slot",
             fmt::format("{} of its chunks lie where {} lie too: one of the two shows what was "
                         "written to the other",
                         count, with.empty() ? "other chunks of it" : "chunks of " + with),
             "put catalog.db back from a copy, or look which of them is right, and copy it out");
    }
  }

  void compare_bits() {
    std::map<uint64_t, MapBits> marked;
    const uint64_t pages = (slots_ + kSlotsInPage - 1) / kSlotsInPage;
    bool astray = false;
    Statement select = database_.prepare("SELECT page, bits FROM pool_page");
    while (select.step()) {
      const auto page = static_cast<uint64_t>(select.integer(0));
      const std::span<const std::byte> blob = select.blob(1);
      if (page >= pages || blob.size() != sizeof(MapBits)) {
        astray = true;
        continue;
      }
      std::memcpy(marked[page].data(), blob.data(), blob.size());
    }
    uint64_t lost = 0;
    uint64_t unmarked = 0;
    std::string sql;
    if (astray) {
      sql = fmt::format("DELETE FROM pool_page WHERE page < 0 OR page >= {} OR length(bits) <> {};",
                        pages, sizeof(MapBits));
    }
    for (const auto& [page, bits] : named_) marked.try_emplace(page, MapBits{});
    for (const auto& [page, bits] : marked) {
      if (bits == named_[page]) continue;
      for (size_t i = 0; i < kMapWords; ++i) {
        lost += count_of_bits(bits[i] & ~named_[page][i]);
        unmarked += count_of_bits(named_[page][i] & ~bits[i]);
      }
      sql += fmt::format("INSERT OR REPLACE INTO pool_page (page, bits) VALUES ({}, x'{}');", page,
                         hex(named_[page]));
    }
    if (lost == 0 && unmarked == 0 && !astray) return;
    // What a map that cannot be trusted does not name may be its data still.
    const bool sound = std::all_of(catalog_.layers.begin(), catalog_.layers.end(),
                                   [](const auto& layer) { return layer.second.sound; });
    const bool repaired = sound && !in_use_ && repair_(sql);
    if (unmarked > 0 || astray) {
      report_.add({.severity = Severity::damage,
                   .kind = "free_slot_in_use",
                   .image = "",
                   .what = fmt::format("catalog: {} of the pool are in use and said to be free: "
                                       "what is written next may be written over them",
                                       plural(unmarked, "slot", "slots")),
                   .remedy = "says that they are in use, as the maps do",
                   .repairable = sound,
                   .repaired = repaired});
    }
    if (lost > 0) {
      report_.add({.severity = Severity::leak,
                   .kind = "lost_slot",
                   .image = "",
                   .bytes = lost * catalog_.store.chunk_size,
                   .what = fmt::format("catalog: {} of the pool said to be in use, and no image "
                                       "has anything there",
                                       plural(lost, "slot is", "slots are")),
                   .remedy = "frees them, of a store that is not mounted",
                   .repairable = sound,
                   .repaired = repaired});
    }
  }

  void compare_counts() {
    for (const auto& [id, layer] : catalog_.layers) {
      if (layer.removed || !layer.sound) continue;
      const uint64_t count = counts_.contains(id) ? counts_.at(id) : 0;
      if (layer.row.own_chunks == count) continue;
      report_.add({.severity = Severity::damage,
                   .kind = "catalog_rows",
                   .image = layer.image,
                   .layer = id,
                   .what = fmt::format("the catalog counts {} of its chunks in the pool, and its "
                                       "map has {}",
                                       layer.row.own_chunks, count),
                   .remedy = "sets the number right",
                   .repairable = true,
                   .repaired = !in_use_ &&
                               repair_(fmt::format("UPDATE layer SET own_chunks = {} WHERE id = {}",
                                                   count, id))});
    }
  }

  static uint64_t count_of_bits(uint64_t word) {
    return static_cast<uint64_t>(std::popcount(word));
  }

  static std::string hex(const MapBits& bits) {
    std::string text;
    for (const std::byte byte : std::as_bytes(std::span(bits))) {
      text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
    }
    return text;
  }

  Database& database_;
  CheckedCatalog& catalog_;
  const bool in_use_;
  const RepairCatalog& repair_;
  CheckReport& report_;
  uint64_t slots_ = SlotMap::kMostSlots;
  std::map<uint64_t, MapBits> named_;    // by the maps, in pages
  std::set<uint64_t> twice_;             // slots
  std::map<uint64_t, uint64_t> counts_;  // chunks, by layer
};

}  // namespace

void check_slots(Database& database, CheckedCatalog& catalog, bool in_use,
                 const RepairCatalog& repair, CheckReport& report) {
  SlotCheck(database, catalog, in_use, repair, report).run();
}

}  // namespace cowfs
