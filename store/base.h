#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "store/catalog.h"
#include "store/file.h"

namespace cowfs {

/// The base: a raw image file or a block device, opened read-only and never written (I1), its
/// access time left alone where that is allowed. Thread-safe.
class Base {
 public:
  /// Says in its Error what is wrong with `path` if it cannot serve as a base.
  explicit Base(const std::string& path, const FaultHook* hook = nullptr);

  /// Absolute.
  [[nodiscard]] const std::string& path() const { return file_.path(); }
  /// Bytes; as it was when the base was opened.
  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] bool is_device() const { return is_device_; }

  /// [offset, offset + size of buffer) must lie inside the base. EIO if it has become shorter.
  void read(std::span<std::byte> buffer, uint64_t offset) const {
    file_.read_exactly(buffer, offset);
  }
  [[nodiscard]] const File& file() const { return file_; }

  /// Path, device, inode, size and times as they are now; no fingerprint.
  [[nodiscard]] BaseRow identity() const;

  /// XXH3-128 over the first and the last MiB and 256 evenly spread pieces of 64 KiB between; over
  /// everything where that is not more. Takes time that does not depend on the size.
  [[nodiscard]] std::vector<std::byte> fingerprint() const;

  /// XXH3-128 over everything. Calls `advance` with the bytes done so far, which may throw.
  [[nodiscard]] std::vector<std::byte> checksum(
      const std::function<void(uint64_t done)>& advance) const;

 private:
  File file_;
  uint64_t size_;
  bool is_device_;
};

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

/// Holds the base against the record (I1): device, inode, size, mtime and ctime unchanged:
/// accepted. Otherwise the fingerprint decides, and with the same fingerprint the mtime: equal, as
/// a careful copy has it, accepted; another, refused. The fingerprint is always compared of a block
/// device, which has no times, and of a base that somebody was seen to write to; that stays on
/// record. `accept_changed` accepts whatever stands there, and takes a writer from the record.
BaseVerdict judge_base(const Base& base, const BaseRow& recorded, bool accept_changed);

}  // namespace cowfs
