#include "store/check_base.h"

#include <cerrno>
#include <string_view>

#include "store/base_verdict.h"
#include "store/error.h"

namespace cowfs {
namespace {

/// ESTALE if a base with the verdict, or one that was seen written to, cannot be taken as it is.
void require_unchanged(const Base& base, const BaseRow& recorded) {
  const BaseVerdict verdict = judge_base(base, recorded, false);
  std::string reason = verdict.reason;
  if (recorded.written_ns) {
    reason =
        "was opened for writing while it was mounted; it has to be accepted first, with "
        "`cowfs mount --accept-changed-base`";
  } else if (verdict.kind != BaseVerdict::Kind::refused) {
    if (has_recorded_fingerprints(base, recorded)) return;
    reason = "is another than the store was made for: the fingerprint differs";
  }
  throw Error::with_message(ESTALE, "base " + base.path() + ": " + reason);
}

/// The checksum, of a base that nobody changes meanwhile.
std::vector<std::byte> checksum_of(const Base& base, const CheckOptions& options) {
  const BaseRow before = base.identity();
  const auto is_as_before = [](const BaseFileRow& now, const BaseFileRow& then) {
    return now.size == then.size && now.mtime_ns == then.mtime_ns;
  };
  std::vector<std::byte> checksum = base.checksum([&](uint64_t done) {
    if (options.cancelled()) throw Error(ECANCELED, "checksum of " + base.path());
    options.progress(done, base.size());
  });
  const BaseRow after = base.identity();
  bool same = is_as_before(after, before);
  for (size_t i = 0; i < after.backing.size(); ++i) {
    same = same && is_as_before(after.backing[i], before.backing[i]);
  }
  if (!same) {
    throw Error::with_message(EBUSY, "base " + base.path() + ": was changed while it was read");
  }
  return checksum;
}

}  // namespace

void check_base(const Base& base, const BaseRow& recorded, CheckReport& report) {
  const auto damage = [&](const std::string& what, const std::string& remedy) {
    const bool of_backing = what.starts_with("its backing file ");
    report.add({.severity = Finding::Severity::damage,
                .kind = "base",
                .image = "",
                .what = "base " + base.path() + (of_backing ? ": " : " ") + what,
                .remedy = remedy});
  };
  const BaseVerdict verdict = judge_base(base, recorded, false);
  if (verdict.kind == BaseVerdict::Kind::refused) {
    // "... is another. Bring the old base back, or ...": what is wrong, and what to do.
    constexpr std::string_view kRemedy = ". Bring ";
    const size_t at = verdict.reason.find(kRemedy);
    if (at == std::string::npos) {
      damage(verdict.reason, "or bring the old base back");
    } else {
      damage(verdict.reason.substr(0, at), "bring " + verdict.reason.substr(at + kRemedy.size()));
    }
  } else if (verdict.kind == BaseVerdict::Kind::unchanged &&
             !has_recorded_fingerprints(base, recorded)) {
    // Of others the verdict rests on the fingerprint already.
    damage("has other content than it had, though its times are the same: the fingerprint differs",
           "bring the old base back");
  }
  if (recorded.written_ns) {
    damage(
        "was opened for writing while it was mounted, or found changed by a full comparison: "
        "what images show of it may be wrong",
        recorded.checksum.empty() ? "compare it with a copy; no checksum of it was recorded"
                                  : "compare it in full with `cowfs check --base`");
  }
}

void record_base(Catalog& catalog, const Base& base, const CheckOptions& options) {
  require_unchanged(base, catalog.base());
  BaseRow row = base.identity_and_fingerprints();
  row.checksum = checksum_of(base, options);
  const std::vector<std::byte> before = catalog.base().checksum;
  if (!before.empty() && before != row.checksum) {
    throw Error::with_message(
        ESTALE, "base " + base.path() +
                    ": is not what it was when its checksum was recorded: bring the old base back; "
                    "or mount with --accept-changed-base, at the machines' risk, and record then");
  }
  Catalog::Change change(catalog);
  change.set_base(row);
  change.commit();
}

bool compare_base(Catalog& catalog, const Base& base, const CheckOptions& options) {
  const BaseRow recorded = catalog.base();
  if (recorded.checksum.empty()) {
    throw Error::with_message(ENODATA, "base " + base.path() +
                                           ": no checksum of it was recorded; `cowfs check "
                                           "--record-base` does that");
  }
  if (base.size() != recorded.virtual_size || checksum_of(base, options) != recorded.checksum) {
    if (base.path() != recorded.path) return false;  // some other file is: that says nothing
    Catalog::Change change(catalog);
    change.set_base_written(catalog_now());
    change.commit();
    return false;
  }
  BaseRow row = base.identity_and_fingerprints();
  row.checksum = recorded.checksum;
  Catalog::Change change(catalog);
  change.set_base(row);
  change.commit();
  return true;
}

}  // namespace cowfs
