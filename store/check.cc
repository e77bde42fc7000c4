// A check of a store at rest
//
// The catalog is read from a copy in a temporary directory: SQLite, which would take in the log
// that a server left behind when it died, makes files beside what it opens and changes them when it
// closes it. So the store stays as it is, log included, and may lie on a file system that is
// mounted read-only. A repair writes to the real catalog, through SQLite, after it has saved it.
//
// Order: the catalog as a database, its rows and maps, the files that belong to them, the space in
// each CoW file, the reserve, the base. What the catalog cannot be trusted with is not held against
// the files.
//
// A repair changes a byte of no image. It gives back the space of what no image holds, and it mends
// values that only one value can be right for. The catalog comes first (I12): what it has forgotten
// durably is then removed or punched. It does not touch what a person may yet save: a CoW file that
// is newer than the catalog, or one of which the catalog says nothing but that it has data, or the
// space of an image that has damage; and nothing at all where the catalog may not be the right one
// (check_doubt.h).

#include "store/check.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <map>
#include <string_view>
#include <utility>

#include "store/catalog.h"
#include "store/check_base.h"
#include "store/check_catalog.h"
#include "store/check_database.h"
#include "store/check_doubt.h"
#include "store/check_report.h"
#include "store/check_reserve.h"
#include "store/check_space.h"
#include "store/error.h"
#include "store/host_fs.h"
#include "store/layout.h"
#include "store/policy.h"
#include "store/pool_file.h"
#include "store/reserve.h"
#include "store/store_lock.h"
#include "store/temporary_directory.h"

namespace cowfs {
namespace {

namespace fs = std::filesystem;
using Severity = Finding::Severity;

/// What an error says, and what to do: what it says itself, behind a semicolon, is better than what
/// can be said of all.
std::pair<std::string, std::string> with_remedy(const Error& error, const char* general) {
  const std::string text = error.what();
  const size_t own = text.find("; ");
  if (own == std::string::npos) return {text, general};
  return {text.substr(0, own), text.substr(own + 2)};
}

std::optional<struct stat> status_of(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0) return status;
  if (errno == ENOENT) return std::nullopt;
  throw Error{errno, path};
}

uint64_t allocated(const struct stat& status) {
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

/// Holes as holes: a stranger's file may be mostly hole.
void copy_file(const std::string& from, const std::string& to) {
  const File source(from, O_RDONLY | O_NOFOLLOW);
  const File target(to, O_RDWR | O_CREAT | O_EXCL, 0600);
  const Space space = space_at(to);
  if (allocated(source.status()) > space.available) {
    throw Error::with_message(ENOSPC, "copy of " + from + ": there is not enough space in " +
                                          fs::path(to).parent_path().string() +
                                          "; name another directory with TMPDIR");
  }
  std::vector<std::byte> buffer(1 << 20);
  for (std::optional<uint64_t> at = source.next_data(0); at; at = source.next_data(*at)) {
    const uint64_t end = source.next_hole(*at);
    if (end <= *at) break;
    while (*at < end) {
      const std::span piece(buffer.data(), std::min<size_t>(buffer.size(), end - *at));
      source.read_exactly(piece, *at);
      target.write(piece, *at);
      *at += piece.size();
    }
  }
  target.truncate(source.size());
}

/// Whether an error in the catalog is the catalog's fault, rather than ours or the machine's.
bool is_damage(const Error& error) {
  constexpr std::array kDamage{EUCLEAN, EINVAL, EIO, EEXIST};
  return std::find(kDamage.begin(), kDamage.end(), error.code()) != kDamage.end();
}

class StoreCheck {
 public:
  StoreCheck(const std::string& directory, const CheckOptions& options, const Doubt& doubt)
      : directory_(directory), options_(options), doubt_(doubt), report_(options) {}

  CheckResult run() {
    require_store();
    lock();
    std::optional<CheckedCatalog> catalog;
    try {
      catalog = check_catalog();
    } catch (const Error& error) {
      if (repairing_ || !is_damage(error)) {
        throw Error::with_message(error.code(), in_store(error.what()));
      }
      damage("catalog", in_store(error.what()), kCopyBack);
    }
    if (catalog) {
      check_files(*catalog);
      open_pool(*catalog);
      check_spaces(*catalog);
      check_reserve(directory_, report_);
      check_base_of(catalog->base);
    }
    return report_.result();
  }

 private:
  static constexpr const char* kCopyBack = "put catalog.db back from a copy";

  void damage(const std::string& kind, const std::string& what, const std::string& remedy) {
    report_.add(
        {.severity = Severity::damage, .kind = kind, .image = "", .what = what, .remedy = remedy});
  }
  void note(const std::string& what) {
    report_.add(
        {.severity = Severity::note, .kind = "note", .image = "", .what = what, .remedy = ""});
  }

  void require_store();
  void lock();
  std::optional<CheckedCatalog> check_catalog();
  bool copy_catalog();
  std::string in_store(std::string text) const;
  bool repair_catalog(const std::string& sql);
  void change_catalog(const std::string& sql);

  void check_files(CheckedCatalog& catalog);
  void check_own_map(StorePolicy& policy, const CheckedLayer& layer);
  void check_layer_file(CheckedLayer& layer, const struct stat* status);
  void check_stray_file(uint64_t id, const struct stat& status, uint64_t last_layer);
  bool remove(const std::string& path);
  void check_names();

  void open_pool(const CheckedCatalog& catalog);
  void check_spaces(const CheckedCatalog& catalog);
  void check_base_of(const BaseRow& recorded);

  const std::string directory_;
  const CheckOptions& options_;
  const Doubt& doubt_;
  std::string_view suffix_;  // of the policy's CoW files
  CheckReport report_;
  std::optional<StoreLock> lock_;
  const TemporaryDirectory scratch_{"cowfs-check"};
  std::optional<PoolFile> pool_;
  std::optional<Database> copy_;  // of the catalog
  std::optional<Database> real_;  // once something is repaired
  bool repairing_ = false;        // what fails now is not the catalog's fault
  bool no_room_ = false;          // to change the catalog
};

// ---- the store as a whole -----------------------------------------------------------------------

void StoreCheck::require_store() {
  if (!fs::exists(directory_)) {
    throw Error::with_message(ENOENT, "store " + directory_ + ": there is none");
  }
  if (!fs::is_directory(directory_)) {
    throw Error::with_message(ENOTDIR, "store " + directory_ + ": is not a directory");
  }
  const int access = options_.repair ? R_OK | W_OK | X_OK : R_OK | X_OK;
  if (::access(directory_.c_str(), access) != 0) throw Error{errno, "store " + directory_};
  if (!status_of(catalog_path(directory_)) && !status_of(layers_path(directory_))) {
    throw Error::with_message(
        ENOENT, "store " + directory_ + ": is no store: there is neither catalog.db nor layers");
  }
}

/// Where nobody could hold the lock there is none to take: a store without the file, or on a file
/// system that cannot be written to.
void StoreCheck::lock() {
  const std::string path = directory_ + "/lock";
  if (!options_.repair && (!status_of(path) || ::access(path.c_str(), W_OK) != 0)) {
    if (const std::optional<Holder> holder = StoreLock::holder(directory_)) {
      throw Error::with_message(
          EBUSY, "store " + directory_ + ": in use by process " + std::to_string(holder->pid));
    }
    return;
  }
  lock_.emplace(directory_, Holder{.pid = ::getpid(), .mount = "", .ending = false});
}

// ---- the catalog --------------------------------------------------------------------------------

std::optional<CheckedCatalog> StoreCheck::check_catalog() {
  if (!copy_catalog()) return std::nullopt;
  const std::string path = catalog_path(scratch_.path());
  // A connection that may not write would pass over CHECK clauses (sqlite3AddCheckConstraint in
  // SQLite's build.c); the copy is ours.
  copy_.emplace(path, Database::Mode::read_write_alone);
  if (is_blank(*copy_)) {
    const std::string layers = layers_path(directory_);
    if (fs::exists(layers) && !fs::is_empty(layers)) {
      damage("catalog", "catalog.db is empty, and there are CoW files", kCopyBack);
    } else {
      note("the making of this store was cut short; the next mount makes it anew");
    }
    return std::nullopt;
  }
  require_schema(*copy_, current_schema());
  if (!check_database(*copy_, report_)) return std::nullopt;
  return check_rows(
      *copy_, false, [this](const std::string& sql) { return repair_catalog(sql); }, report_);
}

/// False, with a finding, if there is nothing that SQLite could open.
bool StoreCheck::copy_catalog() {
  const std::string path = catalog_path(directory_);
  const std::optional<struct stat> status = status_of(path);
  if (!status || !S_ISREG(status->st_mode)) {
    damage("catalog",
           status ? "catalog.db is no regular file"
                  : "catalog.db is missing: what the CoW files hold cannot be told without it",
           kCopyBack);
    return false;
  }
  require_sound_header(path);
  for (const char* suffix : {"", "-wal", "-journal"}) {
    const std::optional<struct stat> part = status_of(path + suffix);
    if (!part) continue;
    if (!S_ISREG(part->st_mode)) {
      damage("catalog", "catalog.db" + std::string(suffix) + " is no regular file", kCopyBack);
      return false;
    }
    copy_file(path + suffix, catalog_path(scratch_.path()) + suffix);
  }
  return true;
}

/// Messages of SQLite name the copy.
std::string StoreCheck::in_store(std::string text) const {
  const size_t at = text.find(scratch_.path());
  return at == std::string::npos ? text : text.replace(at, scratch_.path().size(), directory_);
}

bool StoreCheck::repair_catalog(const std::string& sql) {
  if (!options_.repair || no_room_) return false;
  repairing_ = true;
  try {
    change_catalog(sql);
  } catch (const Error& error) {
    if (!is_no_space(error.code())) throw;
    no_room_ = true;
    note(
        "the disk is full, and the catalog can neither be saved nor changed: what needs no change "
        "of it is repaired; repair again then");
  }
  repairing_ = false;
  return !no_room_;
}

void StoreCheck::change_catalog(const std::string& sql) {
  if (!real_) {
    // The copy is being read, and SQLite writes no file from a connection that is.
    Database as_it_was = copy_->copy_in_memory();
    const auto save = [&] {
      return save_catalog([&](const std::string& path) { as_it_was.copy_to(path); },
                          catalog_path(directory_));
    };
    std::string saved;
    try {
      saved = save();
    } catch (const Error& error) {
      if (!is_no_space(error.code()) || !Reserve(directory_).give_up()) throw;
      saved = save();
    }
    note("the catalog as it was is saved as " + saved);
    real_.emplace(catalog_path(directory_), writing_mode(directory_));
  }
  Transaction transaction(*real_);
  real_->execute(sql);
  transaction.commit();
}

// ---- files --------------------------------------------------------------------------------------

void StoreCheck::check_files(CheckedCatalog& catalog) {
  check_names();
  suffix_ = catalog.policy->file_suffix;
  const std::string layers = layers_path(directory_);
  std::map<uint64_t, struct stat> on_disk;
  std::error_code error;
  for (fs::directory_iterator entry(layers, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::optional<uint64_t> id = layer_of_file(entry->path().filename(), suffix_);
    if (!id) {
      note("layers/" + entry->path().filename().string() +
           " is none of cowfs's files; it is left alone");
    } else if (const std::optional<struct stat> status = status_of(entry->path())) {
      on_disk.emplace(*id, *status);
    }
  }
  if (error && error.value() != ENOENT && error.value() != ENOTDIR) {
    throw Error(error.value(), "read " + layers);
  }

  for (auto& [id, layer] : catalog.layers) {
    const auto found = on_disk.find(id);
    check_layer_file(layer, found == on_disk.end() ? nullptr : &found->second);
  }
  for (const auto& [id, status] : on_disk) {
    if (!catalog.layers.contains(id)) check_stray_file(id, status, catalog.last_layer);
  }
}

void StoreCheck::check_layer_file(CheckedLayer& layer, const struct stat* status) {
  const std::string name = "layers/" + layer_file_name(layer.row.id, suffix_);
  const auto found = [&](Severity severity, const char* kind, const std::string& what,
                         const char* remedy) {
    return Finding{.severity = severity,
                   .kind = kind,
                   .image = layer.image,
                   .layer = layer.row.id,
                   .what = what,
                   .remedy = remedy};
  };
  if (status != nullptr && !S_ISREG(status->st_mode)) {
    layer.sound = false;
    report_.add(found(Severity::damage, "missing_file", name + " is no regular file",
                      "put the CoW file back from a copy"));
  } else if (status != nullptr && status->st_nlink > 1) {
    // Of two layers with one file, what one does not know is what the other has.
    layer.sound = false;
    report_.add(found(Severity::damage, "shared_file",
                      name + " has another name too (a hard link), which changes with it; nothing "
                             "more of this image was checked",
                      "replace it by a copy of itself, or remove the other name"));
  } else if (layer.removed) {
    if (status != nullptr) remove(directory_ + "/" + name);
  } else if (layer.row.has_file && status == nullptr) {
    layer.sound = false;
    report_.add(
        found(Severity::damage, "missing_file",
              "its CoW file " + name + " is missing, and what was written with it",
              "put the CoW file back from a copy, or give the image up with cowfs rm --store"));
  } else if (!layer.row.has_file && status != nullptr && !layer.has_present &&
             allocated(*status) > 0) {
    Finding leak = found(Severity::leak, "unnamed_file",
                         "its CoW file " + name + " was never flushed: nothing in it counts",
                         "removes the file");
    leak.bytes = allocated(*status);
    leak.repairable = true;
    leak.repaired = remove(directory_ + "/" + name);
    report_.add(leak);
  }
}

void StoreCheck::check_stray_file(uint64_t id, const struct stat& status, uint64_t last_layer) {
  const std::string name = "layers/" + layer_file_name(id, suffix_);
  if (!S_ISREG(status.st_mode)) {
    damage("newer_file", name + " is no regular file", "move it elsewhere");
    return;
  }
  // The catalog has known the number of each file before the file was made.
  if (id > last_layer) {
    damage("newer_file", name + " is newer than the catalog, which may be an old copy",
           "put the right catalog.db back, or move the file elsewhere");
    return;
  }
  report_.add({.severity = Severity::leak,
               .kind = "left_over_file",
               .image = "",
               .layer = id,
               .bytes = allocated(status),
               .what = name + " is left over from an image that was removed",
               .remedy = "removes the file",
               .repairable = true,
               .repaired = remove(directory_ + "/" + name)});
}

/// False if nothing is to be repaired.
bool StoreCheck::remove(const std::string& path) {
  if (options_.repair) remove_file(path);
  return options_.repair;
}

/// What cowfs never makes is somebody's own: it is told of and left alone.
void StoreCheck::check_names() {
  constexpr std::array<std::string_view, 8> kKnown{"catalog.db", "catalog.db-wal", "catalog.db-shm",
                                                   "layers",     "lock",           "reserve",
                                                   "pool",       "pool.new"};
  for (const fs::directory_entry& entry : fs::directory_iterator(directory_)) {
    const std::string name = entry.path().filename();
    if (std::find(kKnown.begin(), kKnown.end(), name) != kKnown.end()) continue;
    // Copies of the catalog, and one whose making was cut short.
    if (name.starts_with("catalog.db.v") || name.starts_with("catalog.db.before-repair") ||
        name.starts_with("catalog.db.rescued") || name.starts_with("catalog.db.new") ||
        name.starts_with("pool.before-restore")) {
      continue;
    }
    note(name + " is none of cowfs's files; it is left alone");
  }
  std::error_code error;
  if (!fs::is_directory(layers_path(directory_), error)) {
    damage("missing_file", "the directory layers is missing, and all that was written with it",
           "put it back from a copy");
  }
}

// ---- space and base -----------------------------------------------------------------------------

/// None, with a finding, if it is not there or not the store's.
void StoreCheck::open_pool(const CheckedCatalog& catalog) {
  if (!catalog.policy->has_pool || !catalog.pool) return;
  const bool used = std::any_of(catalog.layers.begin(), catalog.layers.end(),
                                [](const auto& layer) { return layer.second.has_present; });
  try {
    std::error_code error;
    const fs::path path = fs::canonical(pool_path(directory_), error);
    pool_.emplace(error ? pool_path(directory_) : path.string(), PoolFile::Access::read, nullptr);
    const PoolHeader header{.uuid = catalog.store.uuid,
                            .chunk_size = catalog.store.chunk_size,
                            .generation = catalog.pool->now};
    // One that is blank, or whose header was cut short, gets it when the store is opened.
    static_cast<void>(pool_->judge(header, catalog.pool->before, used));
  } catch (const Error& error) {
    pool_.reset();
    damage("pool", error.what(),
           error.code() == ENOENT ? "bring it back; or, if it lies elsewhere now, name it with "
                                    "--pool when the store is mounted"
                                  : "see cowfs-pool(1)");
  }
}

void StoreCheck::check_spaces(const CheckedCatalog& catalog) {
  if (catalog.policy->has_pool && !pool_) return;
  const ChunkSize chunk(catalog.store.chunk_size);
  // As repaired, if it was.
  const std::string& place = real_ ? directory_ : scratch_.path();
  copy_.reset();
  real_.reset();
  Catalog maps(catalog_path(place), reading_mode(place));
  MapArena arena;
  const PolicyContext context{.chunk = chunk,
                              .directory = layers_path(directory_),
                              .arena = arena,
                              .catalog = maps,
                              .hook = nullptr,
                              .pool = pool_ ? &*pool_ : nullptr,
                              .store = catalog.store.uuid,
                              .base = &catalog.base,
                              .read_only = !options_.repair};
  const auto is_checked = [&](const CheckedLayer& layer) {
    return layer.sound && layer.has_image && !layer.removed &&
           (layer.row.has_file || (catalog.policy->has_pool && layer.has_present));
  };
  uint64_t total = 0;
  for (const auto& [id, layer] : catalog.layers) total += is_checked(layer) ? layer.image_size : 0;
  uint64_t done = 0;
  std::unique_ptr<StorePolicy> policy;
  try {
    policy = catalog.policy->open(context);
  } catch (const Error& error) {
    if (error.code() != EUCLEAN) throw;
    const auto [what, remedy] = with_remedy(error, "see what else is wrong with the pool");
    damage("pool", what, remedy);
    return;
  }
  for (const auto& [id, checked] : catalog.layers) {
    if (!is_checked(checked)) continue;
    if (catalog.policy->map_in_file) {
      check_own_map(*policy, checked);
      continue;
    }
    const std::unique_ptr<Layer> layer = policy->layer(checked.row);
    layer->activate();
    FlawFindings findings(report_, checked.image, id,
                          catalog.policy->has_pool ? "pool" : "CoW file");
    const bool doubtful = doubt_.about(id);
    for_each_flaw(
        *layer, check_end(*layer, checked.image_size, chunk),
        [&](const Flaw& flaw) {
          const bool give_back = flaw.kind == Flaw::Kind::leaked && options_.repair && !doubtful;
          if (give_back) layer->reclaim(flaw.offset, flaw.length);
          findings.add(flaw, give_back);
        },
        [&](uint64_t bytes) {
          report_.require_wanted();
          done += bytes;
          options_.progress(std::min(done, total), total);
        });
    findings.finish();
  }
}

void StoreCheck::check_own_map(StorePolicy& policy, const CheckedLayer& layer) {
  const auto add = [&](Severity severity, const std::string& what, const std::string& remedy) {
    report_.add({.severity = severity,
                 .kind = "layer_file",
                 .image = layer.image,
                 .layer = layer.row.id,
                 .what = what,
                 .remedy = remedy});
  };
  try {
    for (const std::string& what : policy.inspect(layer.row)) {
      add(Severity::note, layer_file_name(layer.row.id, suffix_) + ": " + what, "");
    }
  } catch (const Error& error) {
    if (error.code() != EUCLEAN && error.code() != EOPNOTSUPP && error.code() != EIO) throw;
    const auto [what, remedy] =
        with_remedy(error, "put the file back from a copy, or mend it with qemu-img");
    add(Severity::damage, what, remedy);
  }
}

void StoreCheck::check_base_of(const BaseRow& recorded) {
  try {
    check_base(Base(recorded.path, options_of(recorded)), recorded, report_);
  } catch (const Error& error) {
    damage("base", error.what(),
           "bring it back; or, if it was moved, mount the store with its new path once, or compare "
           "it in full with --base --base-path");
  }
}

}  // namespace

CheckResult check_store(const std::string& directory, const CheckOptions& options) {
  return look_then_repair(options, [&](const CheckOptions& how, const Doubt& doubt) {
    return StoreCheck(directory, how, doubt).run();
  });
}

bool compare_base(const std::string& directory, const std::optional<std::string>& base_path,
                  const CheckOptions& options) {
  if (!status_of(catalog_path(directory))) {
    throw Error::with_message(ENOENT, "store " + directory + ": there is none");
  }
  require_sound_header(catalog_path(directory));
  const StoreLock lock(directory, Holder{.pid = ::getpid(), .mount = "", .ending = false});
  Catalog catalog(catalog_path(directory), writing_mode(directory));
  const BaseRow recorded = catalog.base();
  const std::string path = base_path.value_or(recorded.path);
  try {
    return compare_base(catalog, Base(path, options_of(recorded)), options);
  } catch (const Error& error) {
    if (error.code() != ENOENT || base_path) throw;
    throw Error::with_message(ENOENT, std::string(error.what()) +
                                          "; if it was moved, say where it lies with --base-path");
  }
}

}  // namespace cowfs
