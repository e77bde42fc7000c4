// Operations on what is known of an image or of the mount: attributes, space, extended attributes,
// questions of the commands.

#include <fuse_lowlevel.h>
#include <sys/statvfs.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

#include "fs/operations.h"
#include "fs/operations_common.h"
#include "fs/reply.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr std::string_view kPrefix = "user.cowfs.";
constexpr std::string_view kOwnBytes = "user.cowfs.own_bytes";
constexpr std::string_view kChunkSize = "user.cowfs.chunk_size";
constexpr std::string_view kBase = "user.cowfs.base";

int64_t nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void get_attributes(fuse_req_t request, fuse_ino_t inode, fuse_file_info* /*info*/) {
  answer(request, "getattr", inode, [&] {
    FileSystem& fs = file_system(request);
    const struct stat status = inode == kRootInode ? fs.root_status() : fs.status(*fs.image(inode));
    fuse_reply_attr(request, &status, kAttributeTimeout);
  });
}

std::optional<int64_t> new_time(int set, int now_bit, int bit, const timespec& time, int64_t now) {
  if ((set & now_bit) != 0) return now;
  if ((set & bit) != 0) return nanoseconds(time);
  return std::nullopt;
}

void change_attributes(FileSystem& fs, Image& image, const struct stat& wanted, int set) {
  const int64_t now = now_ns();
  if ((set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) != 0) {
    const Attributes old = image.attributes();
    image.set_owner_and_mode((set & FUSE_SET_ATTR_UID) != 0 ? wanted.st_uid : old.uid,
                             (set & FUSE_SET_ATTR_GID) != 0 ? wanted.st_gid : old.gid,
                             (set & FUSE_SET_ATTR_MODE) != 0 ? wanted.st_mode : old.mode, now);
  }
  if ((set & FUSE_SET_ATTR_SIZE) != 0) {
    image.use()->resize(static_cast<uint64_t>(wanted.st_size));
    fs.note_written(image);
  }
  const std::optional<int64_t> atime =
      new_time(set, FUSE_SET_ATTR_ATIME_NOW, FUSE_SET_ATTR_ATIME, wanted.st_atim, now);
  const std::optional<int64_t> mtime =
      new_time(set, FUSE_SET_ATTR_MTIME_NOW, FUSE_SET_ATTR_MTIME, wanted.st_mtim, now);
  if (atime || mtime || (set & FUSE_SET_ATTR_CTIME) != 0) {
    image.set_times(atime, mtime,
                    (set & FUSE_SET_ATTR_CTIME) != 0 ? nanoseconds(wanted.st_ctim) : now);
  }
}

void set_attributes(fuse_req_t request, fuse_ino_t inode, struct stat* wanted, int set,
                    fuse_file_info* /*info*/) {
  answer(request, "setattr", inode, [&] {
    if (inode == kRootInode) throw Error(EPERM, "setattr");
    FileSystem& fs = file_system(request);
    const std::shared_ptr<Image> image = fs.image(inode);
    change_attributes(fs, *image, *wanted, set);
    const struct stat status = fs.status(*image);
    fuse_reply_attr(request, &status, kAttributeTimeout);
  });
}

void get_space(fuse_req_t request, fuse_ino_t inode) {
  answer(request, "statfs", inode, [&] {
    constexpr uint64_t kFragment = 4096;
    Store& store = file_system(request).store();
    const Space space = store.space();
    struct statvfs status {};
    // A loop device takes its discard granularity from f_bsize.
    status.f_bsize = store.facts().chunk_size;
    status.f_frsize = kFragment;
    status.f_blocks = space.total / kFragment;
    status.f_bfree = space.free / kFragment;
    status.f_bavail = space.available / kFragment;
    constexpr uint64_t kFreeNumbers = uint64_t{1} << 32;  // as good as any: they do not run out
    status.f_files = store.image_count() + kFreeNumbers;
    status.f_ffree = status.f_favail = kFreeNumbers;
    status.f_namemax = kMaxNameBytes;
    fuse_reply_statfs(request, &status);
  });
}

// ---- extended attributes
// -------------------------------------------------------------------------

void reply_value(fuse_req_t request, std::string_view value, size_t room) {
  if (room == 0) {
    fuse_reply_xattr(request, value.size());
  } else if (room < value.size()) {
    throw Error(ERANGE, "xattr");
  } else {
    fuse_reply_buf(request, value.data(), value.size());
  }
}

void get_xattr(fuse_req_t request, fuse_ino_t inode, const char* name, size_t room) {
  answer(request, "getxattr", inode, [&] {
    FileSystem& fs = file_system(request);
    const std::string_view wanted(name);
    std::string value;
    if (wanted == kOwnBytes && inode != kRootInode) {
      value = std::to_string(fs.image(inode)->own_bytes());
    } else if (wanted == kChunkSize) {
      value = std::to_string(fs.store().facts().chunk_size);
    } else if (wanted == kBase) {
      value = fs.store().facts().base_path;
    } else {
      throw Error(ENODATA, "xattr");
    }
    reply_value(request, value, room);
  });
}

void list_xattrs(fuse_req_t request, fuse_ino_t inode, size_t room) {
  answer(request, "listxattr", inode, [&] {
    std::string names;
    for (const std::string_view name : {kOwnBytes, kChunkSize, kBase}) {
      if (name == kOwnBytes && inode == kRootInode) continue;
      names += name;
      names += '\0';
    }
    reply_value(request, names, room);
  });
}

int refusal(const char* name) {
  return std::string_view(name).starts_with(kPrefix) ? EPERM : EOPNOTSUPP;
}

void set_xattr(fuse_req_t request, fuse_ino_t /*inode*/, const char* name, const char* /*value*/,
               size_t /*size*/, int /*flags*/) {
  fuse_reply_err(request, refusal(name));
}

void remove_xattr(fuse_req_t request, fuse_ino_t /*inode*/, const char* name) {
  fuse_reply_err(request, refusal(name));
}

}  // namespace

void add_attribute_operations(fuse_lowlevel_ops& table) {
  table.getattr = get_attributes;
  table.setattr = set_attributes;
  table.statfs = get_space;
  table.getxattr = get_xattr;
  table.listxattr = list_xattrs;
  table.setxattr = set_xattr;
  table.removexattr = remove_xattr;
}

}  // namespace cowfs
