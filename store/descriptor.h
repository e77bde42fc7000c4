#pragma once

#include <unistd.h>

#include <cerrno>

#include "store/error.h"

namespace cowfs {

/// A descriptor that is no file of data (see File), closed with its owner.
class Descriptor {
 public:
  /// Takes what a system call returned; throws errno with `what` if it failed.
  Descriptor(int fd, const char* what) : fd_(fd) {
    if (fd < 0) throw Error(errno, what);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(fd_); }
  [[nodiscard]] int fd() const { return fd_; }

 private:
  int fd_;
};

/// Whether `fd` is one of the last that the process may have (RLIMIT_NOFILE). They are for what
/// must go on when there are no others: commits, checkpoints, commands.
bool is_among_last(int fd);

}  // namespace cowfs
