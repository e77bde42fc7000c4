#include "store/file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <filesystem>
#include <utility>

#include "store/error.h"
#include "store/sabotage.h"

namespace cowfs {
namespace {

off_t to_off(uint64_t offset) { return static_cast<off_t>(offset); }

/// Drops `done` bytes from the front of the buffers.
void drop_front(std::span<iovec>& buffers, size_t done) {
  while (done > 0) {
    const size_t step = std::min(done, buffers.front().iov_len);
    buffers.front().iov_base = static_cast<std::byte*>(buffers.front().iov_base) + step;
    buffers.front().iov_len -= step;
    done -= step;
    if (buffers.front().iov_len == 0) buffers = buffers.subspan(1);
  }
  while (!buffers.empty() && buffers.front().iov_len == 0) buffers = buffers.subspan(1);
}

size_t total(std::span<const iovec> buffers) {
  size_t sum = 0;
  for (const iovec& buffer : buffers) sum += buffer.iov_len;
  return sum;
}

int vector_count(std::span<const iovec> buffers) {
  return static_cast<int>(std::min<size_t>(buffers.size(), IOV_MAX));
}

/// Whether the file is nowhere but in memory: there is nothing to fetch then.
bool in_memory(int fd) {
  struct statfs host {};
  return ::fstatfs(fd, &host) == 0 && (host.f_type == TMPFS_MAGIC || host.f_type == RAMFS_MAGIC);
}

/// `code` is write(2)'s.
Error write_error(const File& file, int code, uint64_t offset) {
  const std::string where = "write " + file.path() + " at " + std::to_string(offset);
  // The block layer says that there is no space where a device ends. No waiting for some brings
  // that end back; one that takes space as it is written to says the same before its end, truly.
  if (code == ENOSPC && S_ISBLK(file.status().st_mode) && offset >= file.size()) {
    return Error::with_message(EIO, where + ": the device ends at " + std::to_string(file.size()) +
                                        ": it has become smaller");
  }
  return {code, where};
}

}  // namespace

File::File(const std::string& path, int flags, mode_t mode, const FaultHook* hook)
    : path_(path), hook_(hook != nullptr && *hook ? hook : nullptr) {
  check(FileOperation::open, 0, 0, "open");
  do {
    fd_ = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) throw Error{errno, "open " + path};
}

File::File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

File File::copy_of(int fd, const std::string& path) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw Error{errno, path};
  return {copy, path};
}

File::File(File&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)), hook_(other.hook_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  std::swap(hook_, other.hook_);
  return *this;
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

void File::check(FileOperation operation, uint64_t offset, uint64_t length,
                 const char* what) const {
  if (hook_ == nullptr) return;
  if (const int code = (*hook_)(path_, operation, offset, length); code != 0) {
    throw Error(code, std::string(what) + " " + path_);
  }
}

size_t File::read(std::span<std::byte> buffer, uint64_t offset) const {
  check(FileOperation::read, offset, buffer.size(), "read");
  size_t done = 0;
  while (done < buffer.size()) {
    const ssize_t count =
        ::pread(fd_, buffer.data() + done, buffer.size() - done, to_off(offset + done));
    if (count < 0) {
      if (errno == EINTR) continue;
      throw Error{errno, "read " + path_ + " at " + std::to_string(offset + done)};
    }
    if (count == 0) break;
    if (sabotaged(Sabotage::trust_short_read)) return buffer.size();
    done += static_cast<size_t>(count);
  }
  return done;
}

size_t File::read_cached(std::span<std::byte> buffer, uint64_t offset) const {
  if (hook_ != nullptr && (*hook_)(path_, FileOperation::read_cached, offset, buffer.size()) != 0) {
    return 0;
  }
  size_t done = 0;
  while (done < buffer.size()) {
    const iovec rest{buffer.data() + done, buffer.size() - done};
    const ssize_t count = ::preadv2(fd_, &rest, 1, to_off(offset + done), RWF_NOWAIT);
    if (count < 0 && errno == EOPNOTSUPP && in_memory(fd_)) {
      return done + read(buffer.subspan(done), offset + done);
    }
    if (count <= 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

void File::drop_cached() const { ::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }

void File::read_exactly(std::span<std::byte> buffer, uint64_t offset) const {
  const size_t done = read(buffer, offset);
  if (done < buffer.size()) {
    throw Error::with_message(EIO, "read " + path_ + " at " + std::to_string(offset + done) +
                                       ": the file is shorter than it has to be");
  }
}

void File::read_vector(std::span<iovec> buffers, uint64_t offset) const {
  check(FileOperation::read, offset, total(buffers), "read");
  drop_front(buffers, 0);
  while (!buffers.empty()) {
    const ssize_t count = ::preadv(fd_, buffers.data(), vector_count(buffers), to_off(offset));
    if (count < 0) {
      if (errno == EINTR) continue;
      throw Error{errno, "read " + path_ + " at " + std::to_string(offset)};
    }
    if (count == 0) {
      throw Error::with_message(EIO, "read " + path_ + " at " + std::to_string(offset) +
                                         ": the file is shorter than it has to be");
    }
    offset += static_cast<uint64_t>(count);
    drop_front(buffers, static_cast<size_t>(count));
  }
}

void File::write(std::span<const std::byte> buffer, uint64_t offset) const {
  check(FileOperation::write, offset, buffer.size(), "write");
  while (!buffer.empty()) {
    const ssize_t count = ::pwrite(fd_, buffer.data(), buffer.size(), to_off(offset));
    if (count < 0) {
      if (errno == EINTR) continue;
      throw write_error(*this, errno, offset);
    }
    offset += static_cast<uint64_t>(count);
    buffer = buffer.subspan(static_cast<size_t>(count));
  }
}

void File::write_vector(std::span<iovec> buffers, uint64_t offset) const {
  check(FileOperation::write, offset, total(buffers), "write");
  drop_front(buffers, 0);
  while (!buffers.empty()) {
    const ssize_t count = ::pwritev(fd_, buffers.data(), vector_count(buffers), to_off(offset));
    if (count < 0) {
      if (errno == EINTR) continue;
      throw write_error(*this, errno, offset);
    }
    offset += static_cast<uint64_t>(count);
    drop_front(buffers, static_cast<size_t>(count));
  }
}

void File::sync_data() const {
  check(FileOperation::sync, 0, 0, "fdatasync");
  if (::fdatasync(fd_) != 0 && !sabotaged(Sabotage::trust_failed_sync)) {
    throw Error{errno, "fdatasync " + path_};
  }
}

void File::sync() const {
  check(FileOperation::sync, 0, 0, "fsync");
  if (::fsync(fd_) != 0 && !sabotaged(Sabotage::trust_failed_sync)) {
    throw Error{errno, "fsync " + path_};
  }
}

void File::punch(uint64_t offset, uint64_t length) const {
  check(FileOperation::punch, offset, length, "punch");
  int result = 0;
  do {
    result = ::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, to_off(offset),
                         to_off(length));
  } while (result != 0 && errno == EINTR);
  if (result != 0) throw Error{errno, "punch " + path_ + " at " + std::to_string(offset)};
}

void File::allocate(uint64_t offset, uint64_t length) const {
  check(FileOperation::allocate, offset, length, "allocate");
  int result = 0;
  do {
    result = ::fallocate(fd_, 0, to_off(offset), to_off(length));
  } while (result != 0 && errno == EINTR);
  if (result != 0) throw Error{errno, "allocate " + path_ + " at " + std::to_string(offset)};
}

void File::truncate(uint64_t size) const {
  check(FileOperation::truncate, size, 0, "truncate");
  int result = 0;
  do {
    result = ::ftruncate(fd_, to_off(size));
  } while (result != 0 && errno == EINTR);
  if (result != 0) throw Error{errno, "truncate " + path_ + " to " + std::to_string(size)};
}

bool File::clone_range(const File& source, uint64_t source_offset, uint64_t offset,
                       uint64_t length) const {
  check(FileOperation::clone, offset, length, "clone");
  file_clone_range range{};
  range.src_fd = source.fd_;
  range.src_offset = source_offset;
  range.src_length = length;
  range.dest_offset = offset;
  if (::ioctl(fd_, FICLONERANGE, &range) == 0) return true;
  // EINVAL: not aligned to the host's block; the others: no reflinks here.
  if (errno == EOPNOTSUPP || errno == ENOTTY || errno == EINVAL || errno == EXDEV) return false;
  throw Error{errno, "clone into " + path_ + " at " + std::to_string(offset)};
}

uint64_t File::size() const {
  const struct stat status = this->status();
  if (!S_ISBLK(status.st_mode)) return static_cast<uint64_t>(status.st_size);
  uint64_t size = 0;
  if (::ioctl(fd_, BLKGETSIZE64, &size) != 0) throw Error{errno, "size of " + path_};
  return size;
}

struct stat File::status() const {
  struct stat status {};
  if (::fstat(fd_, &status) != 0) throw Error{errno, "stat " + path_};
  return status;
}

std::optional<uint64_t> File::next_data(uint64_t offset) const {
  const off_t found = ::lseek(fd_, to_off(offset), SEEK_DATA);
  if (found >= 0) return static_cast<uint64_t>(found);
  if (errno == ENXIO) return std::nullopt;
  return offset;
}

uint64_t File::next_hole(uint64_t offset) const {
  const off_t found = ::lseek(fd_, to_off(offset), SEEK_HOLE);
  if (found >= 0) return static_cast<uint64_t>(found);
  return size();
}

bool File::try_lock() const {
  while (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return false;
    if (errno != EINTR) throw Error{errno, "lock " + path_};
  }
  return true;
}

void sync_entry(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  File(parent.empty() ? "." : parent.string(), O_RDONLY | O_DIRECTORY).sync();
}

void remove_file(const std::string& path, const FaultHook* hook) {
  if (hook != nullptr && *hook) {
    if (const int code = (*hook)(path, FileOperation::unlink, 0, 0); code != 0) {
      throw Error(code, "remove " + path);
    }
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw Error{errno, "remove " + path};
}

}  // namespace cowfs
