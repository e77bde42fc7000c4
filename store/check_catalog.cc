// The rows of a catalog that nobody trusts
//
// They may hold anything: the ordinary code (catalog.cc) throws at the first value that cannot be,
// this one names all of them. Repairs here are those that leave every readable byte of every image
// as it is: values that mean nothing are taken away, never made up.

#include "store/check_catalog.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <string_view>

#include "store/check_pool.h"
#include "store/chunk_map.h"
#include "store/chunk_size.h"
#include "store/error.h"
#include "store/names.h"
#include "store/policy.h"

namespace cowfs {
namespace {

using Severity = Finding::Severity;

constexpr const char* kGrowToSee =
    "put catalog.db back from a copy; or grow the image with `cowfs resize`, look at what is "
    "there, "
    "and shrink it to the size that is right";

/// As SQLite writes the number.
std::string sql_number(uint64_t number) { return std::to_string(static_cast<int64_t>(number)); }

/// 8-4-4-4-12 hexadecimal digits in lower case, RFC 9562.
bool is_uuid(const std::string& text) {
  constexpr std::string_view kForm = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
  return std::equal(text.begin(), text.end(), kForm.begin(), kForm.end(), [](char c, char form) {
    return form == 'x' ? std::isdigit(static_cast<unsigned char>(c)) != 0 || (c >= 'a' && c <= 'f')
                       : c == form;
  });
}

std::string forget_layer(uint64_t layer) {
  return "DELETE FROM map_page WHERE layer = " + sql_number(layer) +
         "; DELETE FROM layer WHERE id = " + sql_number(layer);
}

class RowCheck {
 public:
  RowCheck(Database& database, bool in_use, const RepairCatalog& repair, CheckReport& report)
      : database_(database), in_use_(in_use), repair_(repair), report_(report) {}

  std::optional<CheckedCatalog> run() {
    if (!check_store_row() || !check_base_row()) return std::nullopt;
    read_layers();
    check_images();
    check_sequence("layer", catalog_.layers.empty() ? 0 : catalog_.layers.rbegin()->first);
    check_sequence("image", last_image_);
    check_layers();
    check_pages();
    return std::move(catalog_);
  }

 private:
  /// A finding on the catalog's rows; `sql` repairs it.
  void add(Severity severity, const std::string& kind, const std::string& image, uint64_t layer,
           const std::string& what, const std::string& remedy, const std::string& sql = "") {
    report_.add({.severity = severity,
                 .kind = kind,
                 .image = image,
                 .layer = layer,
                 .what = what,
                 .remedy = remedy,
                 .repairable = !sql.empty(),
                 .repaired = !sql.empty() && may_repair(severity) && repair_(sql)});
  }

  /// What a server has in memory is not mended behind its back.
  [[nodiscard]] bool may_repair(Severity severity) const {
    return !in_use_ || severity == Severity::leak;
  }

  bool check_store_row();
  bool check_base_row();
  void read_layers();
  void check_images();
  void check_image(const ImageRow& row, int64_t mode, bool good_numbers);
  [[nodiscard]] std::string free_name(const std::string& wanted);
  void check_layers();
  void check_sequence(const std::string& table, uint64_t least);
  void check_pages();

  Database& database_;
  const bool in_use_;
  const RepairCatalog& repair_;
  CheckReport& report_;
  CheckedCatalog catalog_;
  uint64_t last_image_ = 1;
};

bool RowCheck::check_store_row() {
  Statement select =
      database_.prepare("SELECT uuid, chunk_size, policy, created_ns FROM store WHERE id = 1");
  if (!select.step()) {
    add(Severity::damage, "catalog_rows", "", 0, "catalog: its row of table store is missing",
        kCopyBack);
    return false;
  }
  if (!is_uuid(select.text(0))) {
    add(Severity::damage, "catalog_rows", "", 0, "catalog: the store's number is no UUID",
        kCopyBack);
  }
  if (!ChunkSize::valid(static_cast<uint64_t>(select.integer(1)))) {
    add(Severity::damage, "catalog_rows", "", 0,
        "catalog: no store has chunks of " + std::to_string(select.integer(1)) + " bytes",
        kCopyBack);
    return false;
  }
  catalog_.store = {.uuid = select.text(0),
                    .chunk_size = static_cast<uint32_t>(select.integer(1)),
                    .policy = select.text(2),
                    .created_ns = select.integer(3)};
  try {
    catalog_.policy = &find_policy(catalog_.store.policy, report_.options().policies);
  } catch (const Error& error) {
    add(Severity::damage, "catalog_rows", "", 0, std::string("catalog: ") + error.what(),
        kCopyBack);
    return false;
  }
  return true;
}

bool RowCheck::check_base_row() {
  Statement select = database_.prepare("SELECT 1 FROM base WHERE id = 1");
  if (!select.step()) {
    add(Severity::damage, "catalog_rows", "", 0, "catalog: its row of table base is missing",
        kCopyBack);
    return false;
  }
  Statement others =
      database_.prepare("SELECT (SELECT count(*) FROM base) + (SELECT count(*) FROM store)");
  if (others.step() && others.integer(0) != 2) {
    add(Severity::damage, "catalog_rows", "", 0, "catalog: table store or base has a second row",
        kCopyBack);
  }
  BaseRow& row = catalog_.base;
  try {
    row = read_base_row(database_);
  } catch (const Error& error) {
    if (error.code() != EUCLEAN) throw;
    add(Severity::damage, "catalog_rows", "", 0, std::string("catalog: ") + error.what(),
        kCopyBack);
    return false;
  }
  constexpr size_t kHash = 16;
  bool sound = row.size > 0 && row.virtual_size > 0 && row.virtual_size <= kMaxImageSize &&
               (row.format != BaseFormat::raw || row.size == row.virtual_size) &&
               row.fingerprint.size() == kHash && row.path.starts_with('/') &&
               (row.checksum.empty() || row.checksum.size() == kHash);
  for (const BaseFileRow& file : row.backing) {
    sound = sound && file.fingerprint.size() == kHash && file.path.starts_with('/');
  }
  if (!sound) {
    add(Severity::damage, "catalog_rows", "", 0,
        "catalog: its row of table base cannot be: path, size, fingerprint or checksum", kCopyBack);
  }
  return true;
}

void RowCheck::read_layers() {
  Statement sequence = database_.prepare("SELECT seq FROM sqlite_sequence WHERE name = 'layer'");
  if (sequence.step()) catalog_.last_layer = static_cast<uint64_t>(sequence.integer(0));
  Statement select = database_.prepare(
      "SELECT id, parent, parent_limit, has_file, substr(failure, 1, 200), own_chunks FROM layer "
      "ORDER BY id");
  while (select.step()) {
    const auto id = static_cast<uint64_t>(select.integer(0));
    const auto limit = static_cast<uint64_t>(select.integer(2));
    CheckedLayer& layer = catalog_.layers[id];
    layer.row.id = id;
    layer.row.parent_limit = limit;
    layer.row.has_file = select.integer(3) != 0;
    if (!select.is_null(4)) layer.row.failure = select.text(4);
    layer.row.own_chunks = static_cast<uint64_t>(select.integer(5));
    catalog_.last_layer = std::max(catalog_.last_layer, id);
    const auto wrong = [&](const std::string& what) {
      layer.sound = false;
      add(Severity::damage, "catalog_rows", "", id, "catalog: layer " + sql_number(id) + what,
          kCopyBack);
    };
    if (id == 0 || id > INT64_MAX) wrong(" has a number that no layer can have");
    if (limit > kMaxImageSize) wrong(": its parent limit is not from 0 to 1 PiB");
    if (select.integer(3) != 0 && select.integer(3) != 1) wrong(": has_file is neither 0 nor 1");
    if (!select.is_null(1)) wrong(" lies over another layer, which this version lacks");
  }
}

void RowCheck::check_images() {
  Statement select = database_.prepare(
      "SELECT id, name, layer, size, mode, uid, gid, space_limit FROM image ORDER BY id");
  while (select.step()) {
    ++report_.result().images;
    ImageRow row;
    row.id = static_cast<uint64_t>(select.integer(0));
    if (row.id <= INT64_MAX) last_image_ = std::max(last_image_, row.id);
    if (!select.is_null(1)) row.name = select.text(1);
    row.layer = static_cast<uint64_t>(select.integer(2));
    row.size = static_cast<uint64_t>(select.integer(3));
    const auto is_id = [&](int column) {
      return select.integer(column) >= 0 && select.integer(column) <= UINT32_MAX;
    };
    check_image(row, select.integer(4), is_id(5) && is_id(6) && select.integer(7) >= 0);
  }
}

void RowCheck::check_image(const ImageRow& row, int64_t mode, bool good_numbers) {
  const std::string id = std::to_string(row.id);
  const std::string image = row.name.value_or("image " + id);
  const auto damage = [&](const std::string& what, const std::string& remedy,
                          const std::string& sql = "") {
    add(Severity::damage, "catalog_rows", image, row.layer, what, remedy, sql);
  };
  bool sound = true;
  if (row.id < 2 || row.id > INT64_MAX) {
    damage("its number " + std::to_string(static_cast<int64_t>(row.id)) + " is below 2", kCopyBack);
  }
  if (row.size > kMaxImageSize) {
    sound = false;
    damage("its size is not from 0 to 1 PiB", kCopyBack);
  }
  if (!good_numbers) damage("its owner, group or space limit cannot be", kCopyBack);
  if (mode < 0 || mode > 0777) {
    damage("its mode has bits that are no permissions", "takes them away",
           "UPDATE image SET mode = mode & 511 WHERE id = " + id);
  }
  if (row.name) {
    try {
      check_name(*row.name);
    } catch (const Error& error) {
      const std::string name = free_name("recovered-" + id);
      damage("its name is none that an image can have", "renames it to " + name,
             "UPDATE image SET name = '" + name + "' WHERE id = " + id);
    }
  }

  const auto found = catalog_.layers.find(row.layer);
  if (found == catalog_.layers.end()) {
    add(Severity::damage, "no_layer", image, row.layer,
        "its layer " + sql_number(row.layer) + " is missing, and with it what was written",
        kCopyBack);
    return;
  }
  CheckedLayer& layer = found->second;
  if (layer.has_image) {
    layer.sound = false;
    add(Severity::damage, "shared_layer", image, row.layer,
        "it has the same layer as " + layer.image + ": they write over each other", kCopyBack);
    return;
  }
  layer.has_image = true;
  layer.image = image;
  layer.image_size = row.size;
  layer.sound = layer.sound && sound;
  if (layer.sound && layer.row.parent_limit > row.size) {
    // The size may as well be what is wrong.
    add(Severity::damage, "limit_behind_end", image, row.layer,
        "it ends at " + std::to_string(row.size) + " bytes and shows the base up to " +
            std::to_string(layer.row.parent_limit) + ": one of the two is wrong",
        kGrowToSee);
  }
  if (row.name || in_use_) return;
  layer.removed = repair_("DELETE FROM image WHERE id = " + id + ";" + forget_layer(row.layer));
  report_.add({.severity = Severity::leak,
               .kind = "unlinked_image",
               .image = image,
               .layer = row.layer,
               .what = "it was removed while it was in use, and not freed",
               .remedy = "frees it, as the next mount does",
               .repairable = true,
               .repaired = layer.removed});
}

std::string RowCheck::free_name(const std::string& wanted) {
  std::string name = wanted;
  Statement select = database_.prepare("SELECT 1 FROM image WHERE name = ?");
  for (int number = 2; select.bind(1, name).step(); ++number) {
    select.reset();
    name = wanted + "." + std::to_string(number);
  }
  return name;
}

/// Numbers are never used again, and this is how SQLite knows where the next one begins. Any higher
/// one is right as far as can be seen: that no file is newer is looked at later.
void RowCheck::check_sequence(const std::string& table, uint64_t least) {
  Statement select = database_.prepare(
      "SELECT count(*), max(CAST(seq AS INTEGER)), sum(typeof(seq) <> 'integer') FROM "
      "sqlite_sequence WHERE name = ?");
  select.bind(1, table);
  select.step();
  // SQLite gives no number behind the last that there is.
  constexpr int64_t kMost = INT64_MAX / 2;
  const bool good = (select.integer(0) == 1 || (select.integer(0) == 0 && least == 0)) &&
                    select.integer(1) >= static_cast<int64_t>(least) &&
                    select.integer(1) <= kMost && select.integer(2) == 0;
  if (good) return;
  const std::string number = std::to_string(least);
  add(Severity::damage, "catalog_rows", "", 0,
      "catalog: the record of the last number given in table " + table +
          " is missing, or is no number that it can be",
      "sets it to " + number,
      "DELETE FROM sqlite_sequence WHERE name = '" + table +
          "'; INSERT INTO sqlite_sequence (name, seq) VALUES ('" + table + "', " + number + ")");
}

void RowCheck::check_layers() {
  for (auto& [id, layer] : catalog_.layers) {
    if (layer.row.failure) {
      add(Severity::damage, "failed_image", layer.image, id,
          "writes to it fail since a sync of it failed: " + *layer.row.failure,
          "look at its file system, then give the image free with `cowfs check --clear`");
    }
    if (layer.has_image) continue;
    layer.image = "layer " + std::to_string(id);
    layer.removed = repair_(forget_layer(id));
    report_.add({.severity = Severity::leak,
                 .kind = "orphan_layer",
                 .image = "",
                 .layer = id,
                 .what = "layer " + std::to_string(id) + " belongs to no image",
                 .remedy = "removes it with its CoW file",
                 .repairable = true,
                 .repaired = layer.removed});
  }
}

// ---- map pages ----------------------------------------------------------------------------------

/// The map pages of one layer, in their order.
class PageCheck {
 public:
  PageCheck(uint64_t id, CheckedLayer* layer, const CheckedCatalog& catalog, bool in_use,
            const RepairCatalog& repair, CheckReport& report)
      : id_(id),
        layer_(layer),
        policy_(*catalog.policy),
        chunk_(catalog.store.chunk_size),
        in_use_(in_use),
        repair_(repair),
        report_(report),
        bad_(report, {.severity = Severity::damage,
                      .kind = "bad_map",
                      .image = layer != nullptr ? layer->image : "",
                      .layer = id,
                      .what = "the map page of these bytes holds no map: what is in the CoW file "
                              "there cannot be told; nothing more of this image was checked",
                      .remedy = kCopyBack}) {}

  void add(int64_t page, std::span<const std::byte> blob) {
    if (layer_ == nullptr) {
      ++pages_;
      return;
    }
    const uint64_t page_bytes = chunk_.offset_of(chunks_in_page_);
    const auto number = static_cast<uint64_t>(page);
    if (number >= kMaxImageSize / page_bytes) {
      ++out_of_bounds_;
      return;
    }
    PageCopy copy{.page = number, .bits = {}};
    if (blob.size() == sizeof(copy.bits)) std::memcpy(copy.bits.data(), blob.data(), blob.size());
    // Any number may be a slot's; which of them are is looked at later (check_pool.cc).
    if (blob.size() != sizeof(copy.bits) || (has_states_ && !valid(copy.bits))) {
      bad_.add(number * page_bytes, page_bytes, false);
      layer_->sound = false;
      return;
    }
    layer_->has_present |= has_present(copy.bits);
    if (layer_->has_image && keep_below(copy, end_chunk(), policy_.map_bits)) {
      first_behind_ = first_behind_.value_or(std::max(end_chunk(), number * chunks_in_page_));
    }
  }

  void finish() {
    bad_.finish();
    if (pages_ > 0) {
      add_finding(Severity::leak, "orphan_map",
                  plural(pages_, "map page belongs", "map pages belong") + " to layer " +
                      sql_number(id_) + ", which does not exist",
                  "removes them", "DELETE FROM map_page WHERE layer = " + sql_number(id_));
    }
    if (layer_ == nullptr) return;
    if (out_of_bounds_ > 0) {
      const uint64_t most = kMaxImageSize / chunk_.offset_of(chunks_in_page_);
      add_finding(
          Severity::damage, "map_bounds",
          plural(out_of_bounds_, "map page lies", "map pages lie") + " where no image reaches",
          "removes them",
          "DELETE FROM map_page WHERE layer = " + sql_number(id_) +
              " AND (page < 0 OR page >= " + sql_number(most) + ")");
    }
    // A server that is writing raises a size after the map.
    if (first_behind_ && !in_use_ && layer_->sound) {
      add_finding(Severity::damage, "map_behind_end",
                  "it ends at " + std::to_string(layer_->image_size) +
                      " bytes, and its map speaks of chunks from " +
                      std::to_string(chunk_.offset_of(*first_behind_)) +
                      " on: one of the two is wrong",
                  kGrowToSee);
    }
    if (layer_->has_present && !layer_->row.has_file && !policy_.file_suffix.empty()) {
      layer_->sound = false;
      add_finding(Severity::damage, "missing_file",
                  "its map says that it has data, and it has no CoW file",
                  "put the CoW file and catalog.db back from one copy");
    }
  }

 private:
  [[nodiscard]] bool has_present(const MapBits& bits) const {
    if (has_states_) return last_present(bits).has_value();
    for (uint64_t i = 0; i < chunks_in_page_; ++i) {
      if (SlotMap::is_present(SlotMap::entry(bits, i))) return true;
    }
    return false;
  }

  [[nodiscard]] uint64_t end_chunk() const {
    return chunk_.chunk_of(chunk_.up(layer_->image_size));
  }

  void add_finding(Severity severity, const std::string& kind, const std::string& what,
                   const std::string& remedy, const std::string& sql = "") {
    report_.add(
        {.severity = severity,
         .kind = kind,
         .image = layer_ != nullptr ? layer_->image : "",
         .layer = id_,
         .what = what,
         .remedy = remedy,
         .repairable = !sql.empty(),
         .repaired = !sql.empty() && (!in_use_ || severity == Severity::leak) && repair_(sql)});
  }

  const uint64_t id_;
  CheckedLayer* const layer_;  // null: there is no such layer
  const Policy& policy_;
  const bool has_states_ = policy_.map_bits == ChunkMap::kBits;
  const uint64_t chunks_in_page_ = kMapWords * 64 / policy_.map_bits;
  const ChunkSize chunk_;
  const bool in_use_;
  const RepairCatalog& repair_;
  CheckReport& report_;
  RangeFindings bad_;
  uint64_t pages_ = 0;  // of a layer that does not exist
  uint64_t out_of_bounds_ = 0;
  std::optional<uint64_t> first_behind_;
};

void RowCheck::check_pages() {
  // A page after the other, whatever repairs do to them meanwhile: those are on another connection,
  // and this one reads what there was when it began.
  Statement select =
      database_.prepare("SELECT layer, page, bits FROM map_page ORDER BY layer, page");
  std::optional<PageCheck> of_layer;
  int64_t current = 0;
  while (select.step()) {
    report_.require_wanted();
    if (!of_layer || select.integer(0) != current) {
      if (of_layer) of_layer->finish();
      current = select.integer(0);
      const auto id = static_cast<uint64_t>(current);
      const auto found = catalog_.layers.find(id);
      CheckedLayer* const layer = found == catalog_.layers.end() ? nullptr : &found->second;
      of_layer.emplace(id, layer, catalog_, in_use_, repair_, report_);
    }
    of_layer->add(select.integer(1), select.blob(2));
  }
  if (of_layer) of_layer->finish();
}

}  // namespace

std::optional<CheckedCatalog> check_rows(Database& database, bool in_use,
                                         const RepairCatalog& repair, CheckReport& report) {
  std::optional<CheckedCatalog> catalog = RowCheck(database, in_use, repair, report).run();
  if (catalog && catalog->policy->map_bits == SlotMap::kBits) {
    check_slots(database, *catalog, in_use, repair, report);
  }
  return catalog;
}

}  // namespace cowfs
