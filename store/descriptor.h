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
    if (fd < 0) throw Error{errno, what};
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

/// Runs `work`, which opens something; where there is no descriptor for it, `make_room` and then
/// `work` again. Not only if `make_room` says that it closed something: another thread may have
/// done so just before. And not only once: another may have taken what came free.
template <typename Work, typename MakeRoom>
void with_descriptors(const Work& work, const MakeRoom& make_room) {
  constexpr int kTries = 3;
  for (int again = 0; again < kTries; ++again) {
    try {
      return work();
    } catch (const Error& error) {
      if (!is_no_descriptor(error.code())) throw;
    }
    static_cast<void>(make_room());
  }
  work();
}

}  // namespace cowfs
