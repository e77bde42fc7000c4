#include "fs/mount.h"

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

#include "fs/libfuse_log.h"
#include "store/error.h"

namespace cowfs {
namespace {

void require_fuse_device() {
  const int fd = ::open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (fd >= 0) {
    ::close(fd);
    return;
  }
  const int code = errno;
  std::string hint;
  if (code == ENOENT || code == ENODEV || code == ENXIO) {
    hint = "; the kernel module 'fuse' is missing (modprobe fuse)";
  } else if (code == EACCES || code == EPERM) {
    hint = "; only root may mount here: others can where its mode is 0666, as is usual";
  }
  throw Error::with_message(code, "open /dev/fuse: " + error_text(code) + hint);
}

/// Runs fusermount3(1), for who may not unmount by himself. 0 or an errno value.
int run_fusermount(const std::string& mount_point, bool lazily) {
  const pid_t child = ::fork();
  if (child < 0) return errno;
  if (child == 0) {
    ::execlp("fusermount3", "fusermount3", lazily ? "-uz" : "-u", "-q", mount_point.c_str(),
             nullptr);
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : EBUSY;
}

struct Destroy {
  void operator()(fuse_session* session) const noexcept { fuse_session_destroy(session); }
};

}  // namespace

int mount_fuse(const std::string& mount_point, const std::vector<std::string>& options) {
  require_fuse_device();
  const LibfuseMessages messages;
  const auto fail = [&] {
    const std::string& text = messages.text();
    throw Error::with_message(EPERM, "mount " + mount_point + (text.empty() ? "" : ": " + text));
  };
  fuse_args arguments = FUSE_ARGS_INIT(0, nullptr);
  fuse_opt_add_arg(&arguments, "cowfs");
  for (const std::string& option : options) {
    fuse_opt_add_arg(&arguments, ("-o" + option).c_str());
  }
  // A session that never serves: libfuse mounts for sessions only.
  const fuse_lowlevel_ops none{};
  const std::unique_ptr<fuse_session, Destroy> session(
      fuse_session_new(&arguments, &none, sizeof(none), nullptr));
  fuse_opt_free_args(&arguments);
  if (session == nullptr || fuse_session_mount(session.get(), mount_point.c_str()) != 0) fail();
  const int fd = ::fcntl(fuse_session_fd(session.get()), F_DUPFD_CLOEXEC, 0);
  if (fd < 0) throw Error{errno, "mount " + mount_point};
  return fd;
}

int unmount_mount_point(const std::string& mount_point, int flags) {
  const int code = ::umount2(mount_point.c_str(), UMOUNT_NOFOLLOW | flags) == 0 ? 0 : errno;
  return code == EPERM ? run_fusermount(mount_point, (flags & MNT_DETACH) != 0) : code;
}

std::string fuse_option(const std::string& name, const std::string& value) {
  std::string option = name + "=";
  for (const char c : value) {
    if (c == ',' || c == '\\') option += '\\';
    option += c;
  }
  return option;
}

}  // namespace cowfs
