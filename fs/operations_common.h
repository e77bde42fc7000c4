#pragma once

#include <fcntl.h>
#include <fuse_lowlevel.h>

#include <optional>

#include "fs/file_system.h"
#include "fs/request.h"

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

/// Takes the image into use for an open file, and says how the kernel is to treat the file. A
/// request that comes again gets the file handle that it got before.
inline void open_image(FileSystem& fs, Image& image, fuse_file_info& info) {
  const Request request = current_request();
  std::optional<uint64_t> handle;
  if (request.again) handle = fs.handles().find(request.number);
  if (!handle) {
    image.acquire();
    try {
      handle = fs.handles().add(
          request.number, {.image = image.id(), .writes = (info.flags & O_ACCMODE) != O_RDONLY});
    } catch (...) {
      image.release();
      throw;
    }
  }
  info.fh = *handle;
  info.direct_io = fs.writeback() ? 0 : 1;
  info.keep_cache = 1;  // nobody changes an image behind the kernel's back
}

/// Does nothing if it is closed: the request comes again then.
inline void close_image(FileSystem& fs, const fuse_file_info& info) {
  const std::optional<Handles::Open> open = fs.handles().remove(info.fh);
  if (open) fs.image(open->image)->release();
}

}  // namespace cowfs
