#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "store/file.h"

namespace cowfs {

/// Who has a store open for writing.
struct Holder {
  pid_t pid = 0;
  std::string mount;    ///< mount point; empty: a command without a mount
  bool ending = false;  ///< unmounted, writing what is left
};

/// What the file `lock` says, as far as it makes sense.
Holder parse_holder(const std::string& text);

/// The lock on a store (I9): flock(2) on its file `lock`, which also says who has it. Given up when
/// destroyed, by the kernel also when the process dies.
class StoreLock {
 public:
  /// Takes the lock. A holder that is ending, or a command, is waited for, 30 s at most; others get
  /// an EBUSY Error that names them.
  StoreLock(const std::string& directory, const Holder& self);

  /// Changes what the file says of this process.
  void announce(const Holder& self) const;

  /// Who has the store at `directory` open; none if nobody does.
  static std::optional<Holder> holder(const std::string& directory);

 private:
  File file_;
};

}  // namespace cowfs
