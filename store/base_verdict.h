#pragma once

#include <string>

#include "store/base.h"

namespace cowfs {

/// What to do with a base that is not in all things as recorded.
struct BaseVerdict {
  enum class Kind {
    unchanged,
    same_content,  ///< a copy or restored: the row is to be brought up to date, a log line is due
    refused,
  };
  Kind kind;
  std::string reason;  ///< for people, of the last two
  BaseRow row;         ///< what to record, of the first two
};

/// Holds the base against the record (I1), each of its files: device, inode, size, mtime and ctime
/// unchanged: accepted. Otherwise the fingerprint decides, and with the same fingerprint the mtime:
/// equal, as a careful copy has it, accepted; another, refused. The fingerprint is always compared
/// of a block device, which has no times, and of a base that somebody was seen to write to; that
/// stays on record. `accept_changed` accepts whatever stands there, and takes a writer from the
/// record.
BaseVerdict judge_base(const Base& base, const BaseRow& recorded, bool accept_changed);

/// Whether every file of the base has the fingerprint that is on record.
bool has_recorded_fingerprints(const Base& base, const BaseRow& recorded);

}  // namespace cowfs
