#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <vector>

namespace cowfs::crash {

/// A call that reads or changes files, or makes changes durable, before it is done.
struct FileCall {
  enum class Kind {
    open,
    read,
    write,
    allocate,
    truncate,
    clone,
    rename,
    unlink,
    mkdir,
    rmdir,
    sync
  };

  Kind kind;
  int fd = -1;                ///< of all but open, rename, unlink, mkdir, rmdir
  const char* path = "";      ///< of those
  const char* new_path = "";  ///< of a rename
  int flags = 0;              ///< of open and renameat2; the mode of fallocate
  mode_t mode = 0;            ///< of open and mkdir
  uint64_t offset = 0;
  uint64_t length = 0;     ///< bytes; of a truncate the new size
  bool positioned = true;  ///< a read or write at `offset`, not at the descriptor's own position
  bool data_only = false;  ///< of a sync: fdatasync
  std::vector<iovec> data = {};  ///< of a read or write
  int source = -1;               ///< of a clone
  uint64_t source_offset = 0;
};

/// Who watches or changes the calls of this process. Thread-safe.
class Interposer {
 public:
  virtual ~Interposer() = default;
  /// In place of the call: returns what it is to return, -1 with errno set for a failure. Does the
  /// call itself with `perform`, if it is to be done; may change it before, make it shorter say.
  virtual long around(FileCall& call) = 0;
};

/// Does the call as it stands, unseen by the interposer.
long perform(const FileCall& call);

/// Every call of the process, of libraries too, goes to `interposer` from now on; null: to the
/// kernel. It must outlive the calls under way.
void set_interposer(Interposer* interposer);

}  // namespace cowfs::crash
