#include "fs/keeper_claim.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "store/error.h"

namespace cowfs {

int claim_mount(int live) {
  // A description of its own: flock(2) is by that, and the servers share the one of `live`.
  const std::string path = "/proc/self/fd/" + std::to_string(live);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw Error{errno, "keep a mount"};
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return fd;
  const int code = errno;
  ::close(fd);
  if (code != EWOULDBLOCK) throw Error(code, "keep a mount");
  throw Error::with_message(EBUSY, "another process keeps the mount already");
}

}  // namespace cowfs
