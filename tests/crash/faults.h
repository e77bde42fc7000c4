#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "tests/crash/interpose.h"

namespace cowfs::crash {

/// A call that fails, or a disk that does from there on.
struct Fault {
  uint64_t call = 1;     ///< the first to fail, counted among those that can fail so
  int code = 0;          ///< EIO, ENOSPC, EMFILE or ENOMEM; 0: half a read or write is done
  bool lasting = false;  ///< all later ones fail too, until it is mended
  bool syncs = false;    ///< only syncs can fail

  [[nodiscard]] std::string text() const;
};

/// Makes calls on the files below one directory fail. Thread-safe.
class Faults {
 public:
  explicit Faults(std::string directory) : directory_(std::move(directory)) {}

  /// From now on; nothing may be under way.
  void arm(const Fault& fault);
  void mend() { armed_ = false; }
  /// Whether any call was made to fail.
  [[nodiscard]] bool delivered() const { return delivered_; }

  /// The errno value with which the call is to fail instead of being done; may make it shorter.
  std::optional<int> apply(FileCall& call);

 private:
  [[nodiscard]] bool can_fail(const FileCall& call) const;
  [[nodiscard]] bool below_directory(const FileCall& call) const;

  const std::string directory_;
  Fault fault_;
  std::atomic<bool> armed_ = false;
  std::atomic<bool> delivered_ = false;
  std::atomic<uint64_t> calls_ = 0;
};

}  // namespace cowfs::crash
