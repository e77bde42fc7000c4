// The base of a store that is open: whether it is the one that it was.

#include <spdlog/logger.h>

#include <algorithm>
#include <cerrno>

#include "store/base_verdict.h"
#include "store/error.h"
#include "store/names.h"
#include "store/store.h"

namespace cowfs {

void Store::open_base(const std::optional<BaseRow>& recorded) {
  BaseOptions options;
  if (recorded) {
    options = options_of(*recorded);
    options.find_formats = options_.accept_changed_base;
  } else {
    options.find_formats = true;
    options.format = options_.base_format;
    options.snapshot = options_.base_snapshot;
  }
  options.allow_backing = options_.allow_backing;
  const std::string& path =
      options_.base_path.empty() && recorded ? recorded->path : options_.base_path;
  if (path.empty()) return;
  base_ = std::make_unique<Base>(path, options, &options_.fault_hook);
}

// A guest can write to a raw disk what looks like the header of another format, and name any file
// in it: so what was found when the store was made holds for good (CVE-2008-2004).
void Store::require_same_making(const BaseRow& recorded) const {
  const auto refuse = [&](const std::string& what) {
    throw Error::with_message(EINVAL, "store " + options_.directory + ": " + what +
                                          "; that is fixed when a store is made");
  };
  if (options_.base_format && *options_.base_format != recorded.format) {
    refuse("reads its base as " + std::string(format_name(recorded.format)) + ", not as " +
           std::string(format_name(*options_.base_format)));
  }
  if (options_.base_snapshot && options_.base_snapshot != recorded.snapshot) {
    refuse("shows " +
           (recorded.snapshot ? "the snapshot '" + printable(*recorded.snapshot) + "' of its base"
                              : std::string("its base as it is")) +
           ", not the snapshot '" + printable(*options_.base_snapshot) + "'");
  }
}

void Store::check_base() {
  const BaseRow recorded = catalog_->base();
  require_same_making(recorded);
  if (base_ == nullptr) open_base(recorded);  // somebody else has made the store meanwhile
  if (base_->format() != recorded.format) {
    throw Error::with_message(
        EAGAIN, "store " + facts_.directory + ": was made anew while it was opened; try again");
  }
  // Also of one that was moved, before any layer names it.
  if (policy_->require_base != nullptr) policy_->require_base(base_->identity());
  if (recorded.format == BaseFormat::raw && guess_base_format(base_->file()) != BaseFormat::raw) {
    options_.log->warn(
        "base {}: begins like a qcow file, and is read as raw, as it was when the store was made",
        base_->path());
  }
  const BaseVerdict verdict = judge_base(*base_, recorded, options_.accept_changed_base);
  if (verdict.kind == BaseVerdict::Kind::refused && options_.live->taken_over()) {
    // Machines run on it. It could not be refused to the process before either.
    note_base_written(base_->path(), "was changed");
    return;
  }
  if (verdict.kind == BaseVerdict::Kind::refused) {
    throw Error::with_message(ESTALE, "base " + base_->path() + ": " + verdict.reason + " (store " +
                                          facts_.directory + ", made for " + recorded.path + ")");
  }
  bool moved = verdict.row.path != recorded.path;
  for (size_t i = 0; i < std::min(recorded.backing.size(), verdict.row.backing.size()); ++i) {
    moved = moved || verdict.row.backing[i].path != recorded.backing[i].path;
  }
  if (verdict.kind == BaseVerdict::Kind::same_content) {
    options_.log->warn("base {}: accepted: {}", base_->path(), verdict.reason);
  } else if (!moved) {
    return;
  }
  catalog_->change([&](Catalog::Change& change) { change.set_base(verdict.row); });
  set_base_facts(facts_, verdict.row);
}

void Store::note_base_written(const std::string& path, const std::string& what) {
  options_.log->error(
      "base {}: {} while it is in use: images that rely on what changes are damaged; `cowfs info` "
      "says so from now on",
      path, what);
  try {
    Catalog::Change change(*catalog_);
    change.set_base_written(catalog_now());
    change.commit();
  } catch (const Error& error) {
    options_.log->error("base {}: cannot be remembered as written to: {}", path, error.what());
  }
}

}  // namespace cowfs
