#include "store/reserve.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "store/error.h"
#include "store/host_fs.h"

namespace cowfs {
namespace {

uint64_t size_for(const std::string& directory) {
  constexpr uint64_t kLeast = 256 << 10;
  constexpr uint64_t kMost = 16 << 20;
  constexpr uint64_t kPart = 64;
  return std::clamp(space_at(directory).total / kPart, kLeast, kMost);
}

}  // namespace

Reserve::Reserve(const std::string& directory, const FaultHook* hook)
    : directory_(directory), hook_(hook), size_(size_for(directory)) {}

File Reserve::open_regular(int flags) const {
  // Somebody may have put a pipe there, which would wait for its other end, or another name of a
  // file of his.
  File file(path_in(directory_), flags | O_NOFOLLOW | O_NONBLOCK, 0600, hook_);
  const struct stat status = file.status();
  if (!S_ISREG(status.st_mode) || status.st_nlink != 1) {
    throw Error(EINVAL, "reserve " + path_in(directory_));
  }
  return file;
}

uint64_t Reserve::held() const {
  struct stat status {};
  if (::lstat(path_in(directory_).c_str(), &status) != 0) return 0;
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

bool Reserve::give_up() {
  const std::lock_guard lock(mutex_);
  try {
    if (held() == 0) return false;
    // The file stays: on a disk without a free block it could not be made again.
    open_regular(O_WRONLY).truncate(0);
    given_up_ = true;
    return true;
  } catch (const Error&) {
    return false;
  }
}

bool Reserve::renew() {
  const std::lock_guard lock(mutex_);
  try {
    if (held() >= size_) {
      given_up_ = false;
      return true;
    }
    if (space_at(directory_).available < 2 * size_) return false;
    open_regular(O_WRONLY | O_CREAT).allocate(0, size_);
    given_up_ = false;
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace cowfs
