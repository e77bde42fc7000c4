// A check of a store that is in use
//
// The catalog is read as it is at one moment (Catalog::snapshot): each commit leaves it right, so
// what is seen is what a crash would leave. Then come the files, while no name changes (an image's
// CoW file is removed under the same lock as its rows), and the images one by one; see
// image_check.cc. Guests go on all the while.
//
// Only leaks are repaired: what the server has in memory is not mended behind its back.

#include <spdlog/logger.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <set>

#include "store/check_base.h"
#include "store/check_catalog.h"
#include "store/check_database.h"
#include "store/check_doubt.h"
#include "store/check_report.h"
#include "store/check_reserve.h"
#include "store/error.h"
#include "store/layout.h"
#include "store/names.h"
#include "store/store.h"

namespace cowfs {
namespace {

using Severity = Finding::Severity;

/// The server goes on with files that were removed beneath it, and they are gone once it ends.
constexpr const char* kCopyOut =
    "while it is mounted all of it can still be read: copy the image out before anything else";

}  // namespace

/// Of a store that has one.
void Store::check_pool_in_use(CheckReport& report) {
  if (!pool_file_) return;
  std::string wrong;
  try {
    if (!pool_file_->is_in_place()) {
      wrong = pool_title(pool_file_->path()) + ": is missing, or something else is in its place";
    } else {
      static_cast<void>(pool_file_->judge(pool_header(catalog_->pool_generation().now), 0, true));
      pool_file_->require_room(catalog_->pool_slots(), ChunkSize(facts_.chunk_size));
    }
  } catch (const Error& error) {
    if (error.code() != EUCLEAN && error.code() != EPROTONOSUPPORT) throw;
    wrong = error.what();
  }
  if (wrong.empty()) return;
  report.add({.severity = Severity::damage,
              .kind = "pool",
              .image = "",
              .what = wrong,
              .remedy = std::string(kCopyOut)});
}

CheckResult Store::check(const CheckOptions& options) {
  return look_then_repair(options, [this](const CheckOptions& how, const Doubt& doubt) {
    CheckReport report(how);
    if (const auto known = check_rows_in_use(report)) check_files_in_use(*known, report);
    check_images_in_use(report, doubt);
    check_pool_in_use(report);
    check_reserve(facts_.directory, report);
    cowfs::check_base(*base_, catalog_->base(), report);
    return report.result();
  });
}

void Store::record_base(const CheckOptions& options) {
  cowfs::record_base(*catalog_, *base_, options);
}

bool Store::compare_base(const CheckOptions& options) {
  return cowfs::compare_base(*catalog_, *base_, options);
}

/// Returns the layers that the catalog knows; none if it cannot be trusted.
std::optional<std::set<uint64_t>> Store::check_rows_in_use(CheckReport& report) {
  const std::string path = catalog_->path();
  if (!catalog_->is_in_place()) {
    report.add({.severity = Severity::damage,
                .kind = "catalog",
                .image = "",
                .what = "catalog.db is missing, or another file is in its place: what is written "
                        "from now on is lost once the server ends",
                .remedy = "while it is mounted everything can still be read: copy the images out "
                          "before anything else"});
    return std::nullopt;
  }
  bool saved = false;
  const auto repair = [&](const std::string& sql) {
    if (!report.options().repair) return false;
    if (!saved) {
      options_.log->info(
          "check: the catalog as it was is saved as {}",
          save_catalog([this](const std::string& copy) { catalog_->copy_to(copy); }, path));
      saved = true;
    }
    catalog_->execute(sql);
    return true;
  };
  std::optional<CheckedCatalog> rows;
  try {
    const std::unique_ptr<Database> reader = catalog_->snapshot();
    if (!check_database(*reader, report)) return std::nullopt;
    rows = check_rows(*reader, true, repair, report);
  } catch (const Error& error) {
    if (error.code() != EUCLEAN || saved) throw;
    report.add({.severity = Severity::damage,
                .kind = "catalog",
                .image = "",
                .what = error.what(),
                .remedy = "put catalog.db back from a copy"});
  }
  if (!rows) return std::nullopt;
  std::set<uint64_t> known;
  for (const auto& [id, layer] : rows->layers) known.insert(id);
  return known;
}

void Store::check_files_in_use(std::set<uint64_t> known, CheckReport& report) {
  const std::lock_guard lock(change_mutex_);
  {
    auto names = names_.lock();
    for (const auto& [id, entry] : names->by_id) known.insert(entry.image->layer_id());
  }
  const uint64_t last = catalog_->last_layer();
  const LayersOnDisk on_disk = layers_on_disk(facts_.directory, policy_->file_suffix);
  for (const uint64_t id : on_disk.all) {
    if (known.contains(id)) continue;
    const std::string name = "layers/" + layer_file_name(id, policy_->file_suffix);
    const std::string path = facts_.directory + "/" + name;
    const bool irregular = on_disk.irregular.contains(id);
    if (id > last || irregular) {
      report.add(
          {.severity = Severity::damage,
           .kind = "newer_file",
           .image = "",
           .layer = id,
           .what = name + (irregular ? " is no regular file"
                                     : " is newer than the catalog, which may be an old copy"),
           .remedy = irregular ? "move it elsewhere" : "move the file elsewhere"});
      continue;
    }
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0) throw Error{errno, path};
    if (report.options().repair) remove_file(path, &options_.fault_hook);
    report.add({.severity = Severity::leak,
                .kind = "left_over_file",
                .image = "",
                .layer = id,
                .bytes = static_cast<uint64_t>(status.st_blocks) * 512,
                .what = name + " is left over from an image that was removed",
                .remedy = "removes the file",
                .repairable = true,
                .repaired = report.options().repair});
  }
}

void Store::check_images_in_use(CheckReport& report, const Doubt& doubt) {
  std::vector<Entry> entries;
  {
    auto names = names_.lock();
    for (const auto& [id, entry] : names->by_id) entries.push_back(entry);
  }
  uint64_t total = 0;
  for (const Entry& entry : entries) total += entry.image->size();
  uint64_t done = 0;
  for (const Entry& entry : entries) {
    const std::string name =
        entry.name.empty() ? "image " + std::to_string(entry.image->id()) : entry.name;
    FlawFindings findings(report, name, entry.image->layer_id(),
                          policy_->has_pool ? "pool" : "CoW file");
    const bool was_open = entry.image->in_use_or_open();
    const auto missing = [&] {
      report.add({.severity = Severity::damage,
                  .kind = "missing_file",
                  .image = name,
                  .layer = entry.image->layer_id(),
                  .what = "its CoW file " + entry.image->cow_path().value_or("") +
                          " is missing, and what was written with it",
                  .remedy = was_open ? kCopyOut : "put the CoW file back from a copy"});
    };
    try {
      const Image::Use image = entry.image->use();
      const std::optional<std::string> path = image->cow_path();
      // What a failed image has in memory is not what it has on disk, and it was told of already.
      if (image->failed()) continue;
      if (image->has_file() && path && !std::filesystem::exists(*path)) missing();
      image->check(
          report.options().repair && !doubt.about(entry.image->layer_id()),
          [&](const Flaw& flaw, bool repaired) { findings.add(flaw, repaired); },
          [&](uint64_t bytes) {
            report.require_wanted();
            done += bytes;
            report.options().progress(std::min(done, total), total);
          });
    } catch (const Error& error) {
      // What another program made of a layer's file is the matter of that image alone.
      const bool is_layer =
          policy_->map_in_file && (error.code() == EOPNOTSUPP || error.code() == EBUSY);
      if (error.code() == EUCLEAN || is_layer) {
        report.add({.severity = Severity::damage,
                    .kind = "bad_map",
                    .image = name,
                    .layer = entry.image->layer_id(),
                    .what = std::string("it cannot be checked to its end: ") + error.what(),
                    .remedy = policy_->map_in_file ? "or put the layer's file back from a copy"
                                                   : "put catalog.db back from a copy"});
      } else if (error.code() != ENOENT) {
        throw;
      } else if (!entry.image->unlinked()) {
        missing();  // else it was removed and freed meanwhile
      }
    }
    findings.finish();
    // There may be more images than descriptors.
    if (!was_open) entry.image->retire_if_idle();
  }
}

}  // namespace cowfs
