#include "cmd/stale_mount.h"

#include <fmt/format.h>
#include <sys/mount.h>

#include <cerrno>
#include <optional>

#include "cmd/command.h"
#include "cmd/target.h"
#include "fs/mount.h"
#include "store/error.h"

namespace cowfs {

void clean_up_stale_mounts(const std::string& directory, const std::string& command) {
  for (std::optional<MountEntry> mount; (mount = mount_at(directory)) && is_dead(*mount);) {
    if (!is_cowfs(*mount)) {
      throw Error::with_message(
          ENOTCONN, fmt::format("mount point {}: holds the dead mount of another file system ({} "
                                "of {}); if nobody needs it, `umount -l {}` takes it away",
                                directory, mount->type, mount->source, directory));
    }
    // Lazily: who has something open in it holds it for ever, and gets nothing but errors.
    if (const int code = unmount_mount_point(directory, MNT_DETACH); code != 0) {
      throw Error::with_message(
          code, fmt::format("mount point {}: holds a dead mount that cannot be cleaned up: {}",
                            directory, error_text(code)));
    }
    print_message(command, fmt::format("{}: keeper and server of the mount there were gone; it is "
                                       "cleaned up",
                                       directory));
  }
}

}  // namespace cowfs
