// Operations on the one directory: look-up, creation, removal, renaming, listing.

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fs.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "fs/operations.h"
#include "fs/operations_common.h"
#include "fs/reply.h"

namespace cowfs {
namespace {

/// Directory offsets: 1 and 2 follow the dot entries, an image's is its number + 1. They stay right
/// while images come and go.
constexpr off_t kAfterDot = 1;
constexpr off_t kAfterDotDot = 2;

off_t offset_after(const Image& image) { return static_cast<off_t>(image.id() + 1); }
uint64_t image_before(off_t offset) {
  return offset <= kAfterDotDot ? 0 : static_cast<uint64_t>(offset - 1);
}

Store::NewImage new_image(fuse_req_t request, const char* name, mode_t mode, bool empty) {
  const fuse_ctx* caller = fuse_req_ctx(request);
  return {.name = name,
          .empty = empty,
          .size = std::nullopt,
          .mode = mode & 0777U,
          .uid = caller->uid,
          .gid = caller->gid};
}

/// A change of names, done once though its request may come again; to live until it is answered.
class NameChange {
 public:
  explicit NameChange(FileSystem& fs) : fs_(fs), request_(current_request()) {}
  NameChange(const NameChange&) = delete;
  NameChange& operator=(const NameChange&) = delete;
  ~NameChange() {
    // What failed is not on record, and may fail otherwise when it comes again.
    if (recorded_) attempt([this] { fs_.store().answered(request_.number); });
  }

  void run(const std::function<void(uint64_t request)>& work) {
    if (!done()) work(request_.number);
    recorded_ = true;
    fs_.note_names_changed();
  }
  std::shared_ptr<Image> make(const Store::NewImage& image) {
    const std::optional<uint64_t> made = done();
    std::shared_ptr<Image> result =
        made ? fs_.image(*made) : fs_.store().create(image, request_.number);
    recorded_ = true;
    fs_.note_names_changed();
    return result;
  }

 private:
  [[nodiscard]] std::optional<uint64_t> done() const {
    return request_.again ? fs_.store().done(request_.number) : std::nullopt;
  }

  FileSystem& fs_;
  const Request request_;
  bool recorded_ = false;
};

void lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
  answer(request, "lookup", parent, [&] {
    FileSystem& fs = file_system(request);
    const fuse_entry_param entry = entry_of(fs, *fs.image(name));
    fuse_reply_entry(request, &entry);
  });
}

void forget(fuse_req_t request, fuse_ino_t /*inode*/, uint64_t /*lookups*/) {
  fuse_reply_none(request);
}

void forget_multi(fuse_req_t request, size_t /*count*/, fuse_forget_data* /*forgets*/) {
  fuse_reply_none(request);
}

void create(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
            fuse_file_info* info) {
  answer(request, "create", parent, [&] {
    FileSystem& fs = file_system(request);
    // Those who copy (O_EXCL, O_TRUNC) skip holes of their source and need an empty file; others
    // get the base.
    const bool empty = (info->flags & (O_EXCL | O_TRUNC)) != 0;
    NameChange change(fs);
    const std::shared_ptr<Image> image = change.make(new_image(request, name, mode, empty));
    open_image(fs, *image, *info);
    const fuse_entry_param entry = entry_of(fs, *image);
    if (fuse_reply_create(request, &entry, info) != 0) close_image(fs, *info);
  });
}

void make_node(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode,
               dev_t /*device*/) {
  answer(request, "mknod", parent, [&] {
    if (!S_ISREG(mode)) throw Error(EPERM, "mknod");
    FileSystem& fs = file_system(request);
    NameChange change(fs);
    const std::shared_ptr<Image> image = change.make(new_image(request, name, mode, false));
    const fuse_entry_param entry = entry_of(fs, *image);
    fuse_reply_entry(request, &entry);
  });
}

void make_directory(fuse_req_t request, fuse_ino_t /*parent*/, const char* /*name*/,
                    mode_t /*mode*/) {
  fuse_reply_err(request, EPERM);
}

void make_symlink(fuse_req_t request, const char* /*target*/, fuse_ino_t /*parent*/,
                  const char* /*name*/) {
  fuse_reply_err(request, EPERM);
}

void make_link(fuse_req_t request, fuse_ino_t /*inode*/, fuse_ino_t /*parent*/,
               const char* /*name*/) {
  fuse_reply_err(request, EPERM);
}

void unlink(fuse_req_t request, fuse_ino_t parent, const char* name) {
  answer(request, "unlink", parent, [&] {
    FileSystem& fs = file_system(request);
    NameChange change(fs);
    change.run([&](uint64_t number) { fs.store().remove(name, number); });
    fuse_reply_err(request, 0);
  });
}

void rename(fuse_req_t request, fuse_ino_t parent, const char* name, fuse_ino_t /*new_parent*/,
            const char* new_name, unsigned flags) {
  answer(request, "rename", parent, [&] {
    Store::Rename how = Store::Rename::replace;
    if (flags == RENAME_NOREPLACE) {
      how = Store::Rename::no_replace;
    } else if (flags == RENAME_EXCHANGE) {
      how = Store::Rename::exchange;
    } else if (flags != 0) {
      throw Error(EINVAL, "rename");
    }
    FileSystem& fs = file_system(request);
    NameChange change(fs);
    change.run([&](uint64_t number) { fs.store().rename(name, new_name, how, number); });
    fuse_reply_err(request, 0);
  });
}

/// Fills a listing with what fits; an entry with attributes looks the name up as well.
class Listing {
 public:
  Listing(fuse_req_t request, size_t size, bool plus)
      : request_(request), plus_(plus), buffer_(size) {}

  /// False if it does not fit any more.
  bool add(const char* name, const fuse_entry_param& entry, off_t next) {
    char* at = buffer_.data() + used_;
    const size_t room = buffer_.size() - used_;
    const size_t need = plus_ ? fuse_add_direntry_plus(request_, at, room, name, &entry, next)
                              : fuse_add_direntry(request_, at, room, name, &entry.attr, next);
    if (need > room) return false;
    used_ += need;
    return true;
  }

  void reply() { fuse_reply_buf(request_, buffer_.data(), used_); }

 private:
  fuse_req_t request_;
  bool plus_;
  std::vector<char> buffer_;
  size_t used_ = 0;
};

void list(fuse_req_t request, size_t size, off_t offset, bool plus) {
  FileSystem& fs = file_system(request);
  Listing listing(request, size, plus);
  fuse_entry_param root{};  // inode 0: not to be looked up
  root.attr = fs.root_status();
  if (offset < kAfterDot && !listing.add(".", root, kAfterDot)) return listing.reply();
  if (offset < kAfterDotDot && !listing.add("..", root, kAfterDotDot)) return listing.reply();
  constexpr size_t kSmallestEntry = 24;
  for (const Store::Entry& entry :
       fs.store().list(image_before(offset), size / kSmallestEntry + 1)) {
    fuse_entry_param parameter{};
    if (plus) {
      parameter = entry_of(fs, *entry.image);
    } else {
      parameter.attr.st_ino = entry.image->id();
      parameter.attr.st_mode = S_IFREG;
    }
    if (!listing.add(entry.name.c_str(), parameter, offset_after(*entry.image))) break;
  }
  listing.reply();
}

void read_directory(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                    fuse_file_info* /*info*/) {
  answer(request, "readdir", inode, [&] { list(request, size, offset, false); });
}

void read_directory_plus(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
                         fuse_file_info* /*info*/) {
  answer(request, "readdir", inode, [&] { list(request, size, offset, true); });
}

}  // namespace

void add_name_operations(fuse_lowlevel_ops& table) {
  table.lookup = lookup;
  table.forget = forget;
  table.forget_multi = forget_multi;
  table.create = create;
  table.mknod = make_node;
  table.mkdir = make_directory;
  table.symlink = make_symlink;
  table.link = make_link;
  table.unlink = unlink;
  table.rename = rename;
  table.readdir = read_directory;
  table.readdirplus = read_directory_plus;
}

}  // namespace cowfs
