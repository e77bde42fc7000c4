#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>

#include "store/image.h"

namespace cowfs {

/// Inode numbers are image numbers of the catalog: stable over remounts, never used again. The root
/// directory is 1, which no image has.

/// What of an image or the directory is shown otherwise than it is (mount options).
struct Presentation {
  std::optional<uid_t> uid;
  std::optional<gid_t> gid;
  std::optional<mode_t> umask;
};

/// stat(2) of an image. st_blocks is the private space that is really allocated; at least one block
/// if the image shows something of the base.
struct stat status_of(Image& image, const Presentation& presentation);

/// stat(2) of the mount's directory, which belongs to who mounted.
struct stat status_of_root(uint64_t images, const Presentation& presentation, int64_t changed_ns);

}  // namespace cowfs
