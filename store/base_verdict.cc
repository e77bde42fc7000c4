#include "store/base_verdict.h"

#include <algorithm>
#include <vector>

namespace cowfs {
namespace {

/// A file of the base as it is and as it was.
struct Compared {
  BaseFileRow* now;
  const BaseFileRow* was;
  const BaseFile* file;
  std::string subject;  // of a reason; the base itself is named by who shows it

  [[nodiscard]] bool same_place() const {
    return now->device == was->device && now->inode == was->inode;
  }
  [[nodiscard]] bool same_mtime() const { return now->mtime_ns == was->mtime_ns; }
  [[nodiscard]] bool certainly_same() const {
    return same_place() && same_mtime() && now->ctime_ns == was->ctime_ns &&
           now->size == was->size && !file->is_device;
  }
};

/// Of a base with as many files as are on record.
std::vector<Compared> compare_files(const Base& base, BaseRow& now, const BaseRow& recorded) {
  std::vector<Compared> all{{&now, &recorded, base.files().front().get(), ""}};
  for (size_t i = 0; i < now.backing.size(); ++i) {
    all.push_back({&now.backing[i], &recorded.backing[i], base.files()[i + 1].get(),
                   "its backing file " + now.backing[i].path + " "});
  }
  return all;
}

/// What is another in a file whose fingerprint is known; empty if nothing is.
std::string change_of(const Compared& file) {
  if (file.now->size != file.was->size) {
    return "its size was " + std::to_string(file.was->size) + " bytes and is " +
           std::to_string(file.now->size);
  }
  if (file.now->fingerprint != file.was->fingerprint) {
    return "its content is not what it was (the fingerprint differs)";
  }
  return "";
}

constexpr const char* kWayOn =
    "to use it all the same, mount it with --accept-changed-base: every image then reads the "
    "base as it is now, and an image that relies on what has changed is damaged";

BaseVerdict refuse(const BaseRow& now, const std::string& reason) {
  return {BaseVerdict::Kind::refused, reason, now};
}

}  // namespace

BaseVerdict judge_base(const Base& base, const BaseRow& recorded, bool accept_changed) {
  BaseRow now = base.identity();
  now.checksum = recorded.checksum;
  now.written_ns = recorded.written_ns;
  const auto accept = [&](const std::string& reason) {
    return BaseVerdict{BaseVerdict::Kind::same_content, reason, now};
  };
  const auto accept_content = [&](const std::string& reason) {
    now.checksum.clear();
    now.written_ns.reset();
    return accept(reason);
  };
  const bool written = recorded.written_ns.has_value();

  if (now.backing.size() != recorded.backing.size()) {
    now = base.identity_and_fingerprints();
    if (accept_changed) return accept_content("its backing files are others; accepted as asked");
    return refuse(now, "is not the base that this store was made for: it had " +
                           std::to_string(recorded.backing.size()) + " backing files and has " +
                           std::to_string(now.backing.size()) + ". Bring the old base back, or, " +
                           kWayOn);
  }
  const std::vector<Compared> files = compare_files(base, now, recorded);
  if (!written && std::all_of(files.begin(), files.end(),
                              [](const Compared& file) { return file.certainly_same(); })) {
    for (const Compared& file : files) file.now->fingerprint = file.was->fingerprint;
    if (accept_changed && !now.checksum.empty()) {
      now.checksum.clear();
      return accept("accepted as asked; the checksum of what it was is dropped");
    }
    return {BaseVerdict::Kind::unchanged, "", now};
  }

  for (const Compared& file : files) file.now->fingerprint = fingerprint_of(*file.file);
  for (const Compared& file : files) {
    const std::string change = change_of(file);
    if (change.empty()) continue;
    if (accept_changed) return accept_content("its content changed; accepted as asked");
    return refuse(now, file.subject + "is not the " + (file.subject.empty() ? "base" : "one") +
                           " that this store was made for: " + change +
                           ". Bring the old base back, or, " + kWayOn);
  }
  const auto modified = std::find_if(files.begin(), files.end(),
                                     [](const Compared& file) { return !file.same_mtime(); });
  const bool same_mtime = modified == files.end();
  if (accept_changed && (written || !same_mtime)) {
    now.written_ns.reset();
    return accept(same_mtime ? "somebody wrote to it, or could have; accepted as asked"
                             : "its modification time changed; accepted as asked");
  }
  if (same_mtime) {
    if (written) {
      // Still in doubt, since a sample does not see everything; so it stays on record.
      return accept(
          "somebody wrote to it, or could have, while it was in use, or a full comparison found "
          "it changed; its samples are the same");
    }
    const auto moved = std::find_if(files.begin(), files.end(), [](const Compared& file) {
      return file.file->is_device ? file.now->device != file.was->device : !file.certainly_same();
    });
    if (moved == files.end()) return {BaseVerdict::Kind::unchanged, "", now};
    return accept(moved->subject +
                  (moved->file->is_device
                       ? "is another device with the same fingerprint"
                       : "moved, copied or restored; size, modification time and fingerprint are "
                         "the same"));
  }
  const std::string compare =
      recorded.checksum.empty()
          ? "A full comparison is not possible, since no checksum of the whole base was recorded; "
          : "A full comparison with the recorded checksum tells, and accepts it if it is the same: "
            "`cowfs check --base --base-path " +
                base.path() + "` on the store; or, ";
  return refuse(now, modified->subject +
                         "was modified since the store was made: the modification time is another, "
                         "and the fingerprint, which sees only samples, is the same. " +
                         compare + kWayOn);
}

bool has_recorded_fingerprints(const Base& base, const BaseRow& recorded) {
  const BaseRow now = base.identity_and_fingerprints();
  if (now.fingerprint != recorded.fingerprint || now.backing.size() != recorded.backing.size()) {
    return false;
  }
  for (size_t i = 0; i < now.backing.size(); ++i) {
    if (now.backing[i].fingerprint != recorded.backing[i].fingerprint) return false;
  }
  return true;
}

}  // namespace cowfs
