#include "fs/inodes.h"

#include <unistd.h>

namespace cowfs {
namespace {

constexpr uint64_t kRoot = 1;
constexpr blksize_t kIoSize = 4096;

timespec to_timespec(int64_t nanoseconds) {
  constexpr int64_t kSecond = 1'000'000'000;
  int64_t seconds = nanoseconds / kSecond;
  int64_t rest = nanoseconds % kSecond;
  if (rest < 0) {  // times before 1970
    rest += kSecond;
    --seconds;
  }
  return {.tv_sec = seconds, .tv_nsec = rest};
}

}  // namespace

struct stat status_of(Image& image, const Presentation& presentation) {
  const Attributes attributes = image.attributes();
  struct stat status {};
  status.st_ino = image.id();
  const mode_t mode = presentation.umask ? 0666U & ~*presentation.umask : attributes.mode;
  status.st_mode = S_IFREG | mode;
  status.st_nlink = image.unlinked() ? 0 : 1;
  status.st_uid = presentation.uid.value_or(attributes.uid);
  status.st_gid = presentation.gid.value_or(attributes.gid);
  status.st_size = static_cast<off_t>(image.size());
  status.st_blksize = kIoSize;
  status.st_blocks = static_cast<blkcnt_t>(image.own_bytes() / 512);
  // Programs take a file without blocks for one hole and do not read it: tar -S would archive
  // zeros.
  if (status.st_blocks == 0 && image.shows_base()) status.st_blocks = 1;
  status.st_atim = to_timespec(attributes.atime_ns);
  status.st_mtim = to_timespec(attributes.mtime_ns);
  status.st_ctim = to_timespec(attributes.ctime_ns);
  return status;
}

struct stat status_of_root(uint64_t images, const Presentation& presentation, int64_t changed_ns) {
  struct stat status {};
  status.st_ino = kRoot;
  status.st_mode = S_IFDIR | (presentation.umask ? 0777U & ~*presentation.umask : 0755U);
  status.st_nlink = 2;
  status.st_uid = presentation.uid.value_or(::getuid());
  status.st_gid = presentation.gid.value_or(::getgid());
  status.st_size = static_cast<off_t>(images);
  status.st_blksize = kIoSize;
  status.st_atim = status.st_mtim = status.st_ctim = to_timespec(changed_ns);
  return status;
}

}  // namespace cowfs
