#pragma once

#include <fcntl.h>
#include <fuse_lowlevel.h>

#include "fs/file_system.h"

namespace cowfs {

/// How long the kernel may keep what it was told, in seconds. Names change only through it;
/// st_blocks changes by itself.
constexpr double kEntryTimeout = 86400;
constexpr double kAttributeTimeout = 1;

constexpr fuse_ino_t kRootInode = FUSE_ROOT_ID;

inline fuse_entry_param entry_of(FileSystem& fs, Image& image) {
  fuse_entry_param entry{};
  entry.ino = image.id();
  entry.attr = fs.status(image);
  entry.attr_timeout = kAttributeTimeout;
  entry.entry_timeout = kEntryTimeout;
  return entry;
}

/// Takes the image into use for an open file, and says how the kernel is to treat the file. The
/// file handle says whether it is open for writing.
inline void open_image(FileSystem& fs, Image& image, fuse_file_info& info) {
  const bool writes = (info.flags & O_ACCMODE) != O_RDONLY;
  image.acquire();
  fs.open_counts().add(image.id(), writes);
  info.fh = writes ? 1 : 0;
  info.direct_io = fs.writeback() ? 0 : 1;
  info.keep_cache = 1;  // nobody changes an image behind the kernel's back
}

inline void close_image(FileSystem& fs, Image& image, const fuse_file_info& info) {
  fs.open_counts().remove(image.id(), info.fh != 0);
  image.release();
}

}  // namespace cowfs
