// Operations on an image's data: reading, writing, zeroing, copying, flushing.
//
// A thread that serves requests never waits for a chunk that another is copying up: such a write is
// set aside with its data, and taken up again when the chunk is free. Nor does it wait for space on
// a full disk: see parking.h.

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <vector>

#include "fs/operations.h"
#include "fs/operations_common.h"
#include "fs/reply.h"
#include "fs/request_buffer.h"

namespace cowfs {
namespace {

void open(fuse_req_t request, fuse_ino_t inode, fuse_file_info* info) {
  answer(request, "open", inode, [&] {
    FileSystem& fs = file_system(request);
    const std::shared_ptr<Image> image = fs.image(inode);
    open_image(fs, *image, *info);
    if (fuse_reply_open(request, info) != 0) close_image(fs, *info);
  });
}

void release(fuse_req_t request, fuse_ino_t inode, fuse_file_info* info) {
  answer(request, "release", inode, [&] {
    close_image(file_system(request), *info);
    fuse_reply_err(request, 0);
  });
}

void read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
          fuse_file_info* /*info*/) {
  answer(request, "read", inode, [&] {
    const std::shared_ptr<Image> image = file_system(request).image(inode);
    std::vector<std::byte> spare;
    std::span<std::byte> room = RequestBuffer::reply_room(size);
    if (room.size() < size) {
      spare.resize(size);
      room = spare;
    }
    const size_t count = image->read(room, static_cast<uint64_t>(offset));
    fuse_reply_buf(request, reinterpret_cast<const char*>(room.data()), count);
  });
}

/// Runs `work`, which answers the request as the last thing that it does. Where it finds no space,
/// and requests wait for that, it is run again until it finds some (I7).
template <typename Work>
void answer_with_space(fuse_req_t request, const char* name, const std::shared_ptr<Image>& image,
                       const Work& work) {
  answer(request, name, image->id(), [&] {
    FileSystem& fs = file_system(request);
    try {
      work();
    } catch (const Error& error) {
      if (!fs.waits_for_space() || !is_no_space(error.code())) throw;
      const auto retry = [request, name, image, work](bool give_up) {
        bool waits = false;
        answer(request, name, image->id(), [&] {
          if (fuse_req_interrupted(request) != 0) throw Error(EINTR, name);
          try {
            work();
          } catch (const Error& again) {
            if (give_up || !is_no_space(again.code())) throw;
            waits = true;
          }
        });
        return !waits;
      };
      if (!fs.parking().park(image->id(), error.what(), retry)) throw;
    }
  });
}

/// A write that was set aside, to wait for a chunk or for space.
struct WaitingWrite {
  fuse_req_t request;
  std::shared_ptr<Image> image;
  std::vector<std::byte> data;
  uint64_t offset;
  size_t written;  ///< of the data's front
};

void wait_for(std::shared_ptr<WaitingWrite> write, ChunkRange busy);

void take_up(const std::shared_ptr<WaitingWrite>& write) {
  answer_with_space(write->request, "write", write->image, [write] {
    const auto rest = std::span<const std::byte>(write->data).subspan(write->written);
    if (const auto blocked = write->image->try_write(rest, write->offset + write->written)) {
      write->written += blocked->written;
      wait_for(write, blocked->range);
      return;
    }
    file_system(write->request).note_written(*write->image);
    fuse_reply_write(write->request, write->data.size());
  });
}

void wait_for(std::shared_ptr<WaitingWrite> write, ChunkRange busy) {
  Deferred& deferred = file_system(write->request).deferred();
  Image& image = *write->image;
  image.when_free(busy, [&deferred, write = std::move(write)]() mutable {
    deferred.run([write = std::move(write)] { take_up(write); });
  });
}

void write(fuse_req_t request, fuse_ino_t inode, const char* data, size_t size, off_t offset,
           fuse_file_info* /*info*/) {
  answer(request, "write", inode, [&] {
    FileSystem& fs = file_system(request);
    const std::shared_ptr<Image> image = fs.image(inode);
    const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
    const auto at = static_cast<uint64_t>(offset);
    size_t written = 0;
    try {
      const auto blocked = image->try_write(bytes, at);
      if (!blocked) {
        fs.note_written(*image);
        fuse_reply_write(request, size);
        return;
      }
      written = blocked->written;
    } catch (const Error& error) {
      if (!fs.waits_for_space() || !is_no_space(error.code())) throw;
    }
    take_up(std::make_shared<WaitingWrite>(
        WaitingWrite{request, image, {bytes.begin(), bytes.end()}, at, written}));
  });
}

/// close(2): tells who wrote of trouble, is no barrier.
void flush(fuse_req_t request, fuse_ino_t inode, fuse_file_info* info) {
  answer(request, "close", inode, [&] {
    if (info->fh != 0 && file_system(request).image(inode)->failed()) {
      throw Error::with_message(EIO, "an earlier sync of this image failed");
    }
    fuse_reply_err(request, 0);
  });
}

void sync(fuse_req_t request, fuse_ino_t inode, int /*data_only*/, fuse_file_info* /*info*/) {
  answer(request, "fsync", inode, [&] {
    FileSystem& fs = file_system(request);
    const std::shared_ptr<Image> image = fs.image(inode);
    const auto flush_it = [request, image] {
      answer_with_space(request, "fsync", image, [request, image] {
        image->flush();
        fuse_reply_err(request, 0);
      });
    };
    // Some flushes at once may hold a thread each; more would keep reads of other images waiting.
    if (!fs.begin_flush_here()) return fs.deferred().run(flush_it);
    flush_it();
    fs.end_flush_here();
  });
}

void allocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t length,
              fuse_file_info* /*info*/) {
  answer(request, "fallocate", inode, [&] {
    FileSystem& fs = file_system(request);
    const std::shared_ptr<Image> image = fs.image(inode);
    const auto at = static_cast<uint64_t>(offset);
    const auto size = static_cast<uint64_t>(length);
    const auto finish = [&fs, request, image, at, size, mode] {
      if ((mode & FALLOC_FL_KEEP_SIZE) == 0) image->extend(at + size);
      fs.note_written(*image);
      fuse_reply_err(request, 0);
    };
    switch (mode & ~FALLOC_FL_KEEP_SIZE) {
      case 0:
        // Who asks for space wants to hear that there is none.
        image->reserve(at, size);
        finish();
        break;
      case FALLOC_FL_PUNCH_HOLE:
      case FALLOC_FL_ZERO_RANGE:
        // Parts of chunks are written, and may need space.
        answer_with_space(request, "fallocate", image, [image, at, size, finish] {
          image->make_zero(at, size);
          finish();
        });
        break;
      default:
        throw Error(EOPNOTSUPP, "fallocate");
    }
  });
}

void reply_seek(fuse_req_t request, std::optional<uint64_t> found) {
  if (!found) throw Error(ENXIO, "lseek");
  fuse_reply_lseek(request, static_cast<off_t>(*found));
}

void seek(fuse_req_t request, fuse_ino_t inode, off_t offset, int whence,
          fuse_file_info* /*info*/) {
  answer(request, "lseek", inode, [&] {
    if (whence != SEEK_DATA && whence != SEEK_HOLE) throw Error(EINVAL, "lseek");
    FileSystem& fs = file_system(request);
    const std::shared_ptr<Image> image = fs.image(inode);
    const auto at = static_cast<uint64_t>(offset);
    if (!fs.writeback() || fs.handles().count(inode).writers == 0) {
      reply_seek(request, whence == SEEK_DATA ? image->next_data(at) : image->next_hole(at));
      return;
    }
    // The kernel may hold dirty pages anywhere, also behind the end that we know of: the only hole
    // that is surely one is the end of the file, and only the kernel knows where that is.
    fs.deferred().run([request, image, &fs, at, whence, inode] {
      answer(request, "lseek", inode, [&] {
        const uint64_t size = fs.size_in_kernel(*image);
        if (at >= size) throw Error(ENXIO, "lseek");
        reply_seek(request, whence == SEEK_DATA ? at : size);
      });
    });
  });
}

void copy(fuse_req_t request, fuse_ino_t inode_in, off_t offset_in, fuse_file_info* /*info_in*/,
          fuse_ino_t inode_out, off_t offset_out, fuse_file_info* /*info_out*/, size_t length,
          int flags) {
  answer(request, "copy_file_range", inode_out, [&] {
    if (flags != 0) throw Error(EINVAL, "copy_file_range");
    FileSystem& fs = file_system(request);
    const std::shared_ptr<Image> source = fs.image(inode_in);
    const std::shared_ptr<Image> target = fs.image(inode_out);
    fs.deferred().run([request, source, target, offset_in, offset_out, length, &fs] {
      answer(request, "copy_file_range", target->id(), [&] {
        const uint64_t copied = target->copy_from(*source, static_cast<uint64_t>(offset_in),
                                                  static_cast<uint64_t>(offset_out), length);
        fs.note_written(*target);
        fuse_reply_write(request, copied);
      });
    });
  });
}

}  // namespace

void add_data_operations(fuse_lowlevel_ops& table) {
  table.open = open;
  table.release = release;
  table.read = read;
  table.write = write;
  table.flush = flush;
  table.fsync = sync;
  table.fallocate = allocate;
  table.lseek = seek;
  table.copy_file_range = copy;
}

}  // namespace cowfs
