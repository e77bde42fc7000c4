// Preloaded into the server by failing_disk_test: a sync of a file fails with EIO while what the
// file holds that the environment variable FAILING_SYNC names is part of the synced file's path. As
// Linux does it, the pages stay in the cache and count as clean.

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <string>

namespace {

// Before the server may open nothing any more.
const int orders = [] {
  const char* const path = std::getenv("FAILING_SYNC");
  return path == nullptr ? -1 : ::open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
}();

bool IsToFail(int fd) {
  std::array<char, 4096> text{};
  const ssize_t length = ::pread(orders, text.data(), text.size(), 0);
  if (length <= 0) return false;
  const std::string wanted(text.data(), static_cast<size_t>(length));
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t path = ::readlink(link.c_str(), text.data(), text.size());
  return path > 0 &&
         std::string(text.data(), static_cast<size_t>(path)).find(wanted) != std::string::npos;
}

int Sync(const char* name, int fd) {
  if (IsToFail(fd)) {
    errno = EIO;
    return -1;
  }
  return reinterpret_cast<int (*)(int)>(::dlsym(RTLD_NEXT, name))(fd);
}

}  // namespace

extern "C" int fsync(int fd) { return Sync("fsync", fd); }
extern "C" int fdatasync(int fd) { return Sync("fdatasync", fd); }
