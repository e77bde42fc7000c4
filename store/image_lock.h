#pragma once

#include "store/file.h"

namespace cowfs {

/// Takes the locks on an image file by which QEMU's programs keep out of each other's way
/// (block/file-posix.c in QEMU's sources), as one who writes to it and lets nobody else write. They
/// go with the open file description. False if another program has the file open so that the two
/// do not go together.
[[nodiscard]] bool try_image_lock(const File& file);

/// Whether a program writes to the file that takes part in that.
[[nodiscard]] bool is_image_locked(const File& file);

}  // namespace cowfs
