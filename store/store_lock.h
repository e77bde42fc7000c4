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

/// Descriptors of a lock that another process took, and that is this one's by them too.
struct HeldLock {
  std::optional<int> directory;
  std::optional<int> file;
};

/// The lock on a store (I9): flock(2) on its directory, and on the file `lock` in it, which says
/// who has it. The directory's holds also where somebody removed or replaced the file. Given up
/// when destroyed, by the kernel also when the process dies.
class StoreLock {
 public:
  /// Takes the lock. A holder that is ending, or a command, is waited for, 30 s at most; others get
  /// an EBUSY Error that names them. Makes the file `lock` if there is none. With
  /// `held` it has the lock already, copies the descriptors, and changes only what the file says.
  StoreLock(const std::string& directory, const Holder& self, const HeldLock& held = {});

  /// To be kept by another process, with which the lock stays when this one dies.
  [[nodiscard]] int directory_fd() const { return directory_.fd(); }
  [[nodiscard]] int file_fd() const { return file_->fd(); }

  /// Changes what the file says of this process.
  void announce(const Holder& self) const;

  /// Who has the store at `directory` open; none if nobody does.
  static std::optional<Holder> holder(const std::string& directory);

 private:
  File directory_;
  std::optional<File> file_;  // of one who has the directory's
};

/// A look at a store: while it lasts nobody opens the store who has not got it open already, but
/// waits. Changes nothing, and works on a file system that is read-only.
class StoreLook {
 public:
  explicit StoreLook(const std::string& directory);

  /// Who has it open; none if nobody does.
  [[nodiscard]] const std::optional<Holder>& holder() const { return holder_; }

 private:
  File directory_;
  std::optional<File> file_;  // none: there is no such file
  std::optional<Holder> holder_;
};

}  // namespace cowfs
