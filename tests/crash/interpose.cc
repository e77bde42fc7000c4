// Calls that read and change files, caught on their way from this program and its shared libraries
//
// The symbols that an executable defines win over those of shared libraries. So SQLite's calls come
// here as those of store/ do; no production code takes part. Calls that libc makes for itself (a
// stream's writes) do not come here, and what SQLite writes by mmap (the -shm file, which it
// rebuilds after a crash) does not either.

// Here open and open64 are two symbols, whatever the rest of the program is compiled with.
#undef _FILE_OFFSET_BITS

#include "tests/crash/interpose.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

namespace cowfs::crash {
namespace {

std::atomic<Interposer*> current = nullptr;

long dispatch(FileCall call) {
  Interposer* interposer = current.load(std::memory_order_acquire);
  return interposer != nullptr ? interposer->around(call) : perform(call);
}

uint64_t total(const std::vector<iovec>& data) {
  uint64_t sum = 0;
  for (const iovec& piece : data) sum += piece.iov_len;
  return sum;
}

long open_call(const char* path, int flags, mode_t mode) {
  return dispatch({.kind = FileCall::Kind::open, .path = path, .flags = flags, .mode = mode});
}

long transfer(FileCall::Kind kind, int fd, std::vector<iovec> data, off64_t offset,
              bool positioned) {
  const uint64_t length = total(data);
  return dispatch({.kind = kind,
                   .fd = fd,
                   .offset = static_cast<uint64_t>(offset),
                   .length = length,
                   .positioned = positioned,
                   .data = std::move(data)});
}

long write_call(int fd, const void* buffer, size_t size, off64_t offset, bool positioned) {
  return transfer(FileCall::Kind::write, fd, {{const_cast<void*>(buffer), size}}, offset,
                  positioned);
}

long read_call(int fd, void* buffer, size_t size, off64_t offset, bool positioned) {
  return transfer(FileCall::Kind::read, fd, {{buffer, size}}, offset, positioned);
}

long allocate_call(int fd, int mode, off64_t offset, off64_t length) {
  return dispatch({.kind = FileCall::Kind::allocate,
                   .fd = fd,
                   .flags = mode,
                   .offset = static_cast<uint64_t>(offset),
                   .length = static_cast<uint64_t>(length)});
}

long truncate_call(int fd, off64_t size) {
  return dispatch(
      {.kind = FileCall::Kind::truncate, .fd = fd, .length = static_cast<uint64_t>(size)});
}

long rename_call(const char* from, const char* to, unsigned flags) {
  return dispatch({.kind = FileCall::Kind::rename,
                   .path = from,
                   .new_path = to,
                   .flags = static_cast<int>(flags)});
}

/// The mode argument of open, which is there only with these flags.
mode_t mode_argument(int flags, va_list arguments) {
  const bool makes = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
  return makes ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

long perform(const FileCall& call) {
  switch (call.kind) {
    case FileCall::Kind::open:
      return ::syscall(SYS_openat, AT_FDCWD, call.path, call.flags | O_LARGEFILE, call.mode);
    case FileCall::Kind::read:
    case FileCall::Kind::write: {
      std::vector<iovec> data;  // as much of it as the length says
      uint64_t rest = call.length;
      for (const iovec& piece : call.data) {
        const auto size = static_cast<size_t>(std::min<uint64_t>(rest, piece.iov_len));
        if (size > 0) data.push_back({piece.iov_base, size});
        rest -= size;
      }
      const bool reads = call.kind == FileCall::Kind::read;
      if (!call.positioned) {
        return ::syscall(reads ? SYS_readv : SYS_writev, call.fd, data.data(), data.size());
      }
      return ::syscall(reads ? SYS_preadv : SYS_pwritev, call.fd, data.data(), data.size(),
                       call.offset, 0);
    }
    case FileCall::Kind::allocate:
      return ::syscall(SYS_fallocate, call.fd, call.flags, call.offset, call.length);
    case FileCall::Kind::truncate:
      return ::syscall(SYS_ftruncate, call.fd, call.length);
    case FileCall::Kind::clone: {
      file_clone_range range{};
      range.src_fd = call.source;
      range.src_offset = call.source_offset;
      range.src_length = call.length;
      range.dest_offset = call.offset;
      return ::syscall(SYS_ioctl, call.fd, FICLONERANGE, &range);
    }
    case FileCall::Kind::rename:
      return ::syscall(SYS_renameat2, AT_FDCWD, call.path, AT_FDCWD, call.new_path, call.flags);
    case FileCall::Kind::unlink:
      return ::syscall(SYS_unlinkat, AT_FDCWD, call.path, 0);
    case FileCall::Kind::rmdir:
      return ::syscall(SYS_unlinkat, AT_FDCWD, call.path, AT_REMOVEDIR);
    case FileCall::Kind::mkdir:
      return ::syscall(SYS_mkdirat, AT_FDCWD, call.path, call.mode);
    case FileCall::Kind::sync:
      return ::syscall(call.data_only ? SYS_fdatasync : SYS_fsync, call.fd);
  }
  errno = ENOSYS;
  return -1;
}

void set_interposer(Interposer* interposer) {
  current.store(interposer, std::memory_order_release);
}

}  // namespace cowfs::crash

using cowfs::crash::FileCall;
namespace crash = cowfs::crash;

extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = crash::mode_argument(flags, arguments);
  va_end(arguments);
  return static_cast<int>(crash::open_call(path, flags, mode));
}

int open64(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = crash::mode_argument(flags, arguments);
  va_end(arguments);
  return static_cast<int>(crash::open_call(path, flags, mode));
}

ssize_t write(int fd, const void* buffer, size_t size) {
  return crash::write_call(fd, buffer, size, 0, false);
}
ssize_t pwrite(int fd, const void* buffer, size_t size, off_t offset) {
  return crash::write_call(fd, buffer, size, offset, true);
}
ssize_t pwrite64(int fd, const void* buffer, size_t size, off64_t offset) {
  return crash::write_call(fd, buffer, size, offset, true);
}
ssize_t pwritev(int fd, const iovec* data, int count, off_t offset) {
  return crash::transfer(FileCall::Kind::write, fd, {data, data + count}, offset, true);
}
ssize_t pwritev64(int fd, const iovec* data, int count, off64_t offset) {
  return crash::transfer(FileCall::Kind::write, fd, {data, data + count}, offset, true);
}

ssize_t read(int fd, void* buffer, size_t size) {
  return crash::read_call(fd, buffer, size, 0, false);
}
ssize_t pread(int fd, void* buffer, size_t size, off_t offset) {
  return crash::read_call(fd, buffer, size, offset, true);
}
ssize_t pread64(int fd, void* buffer, size_t size, off64_t offset) {
  return crash::read_call(fd, buffer, size, offset, true);
}
ssize_t preadv(int fd, const iovec* data, int count, off_t offset) {
  return crash::transfer(FileCall::Kind::read, fd, {data, data + count}, offset, true);
}
ssize_t preadv64(int fd, const iovec* data, int count, off64_t offset) {
  return crash::transfer(FileCall::Kind::read, fd, {data, data + count}, offset, true);
}

int fallocate(int fd, int mode, off_t offset, off_t length) {
  return static_cast<int>(crash::allocate_call(fd, mode, offset, length));
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
  return static_cast<int>(crash::allocate_call(fd, mode, offset, length));
}
int ftruncate(int fd, off_t size) noexcept {
  return static_cast<int>(crash::truncate_call(fd, size));
}
int ftruncate64(int fd, off64_t size) noexcept {
  return static_cast<int>(crash::truncate_call(fd, size));
}

int rename(const char* from, const char* to) noexcept {
  return static_cast<int>(crash::rename_call(from, to, 0));
}
int unlink(const char* path) noexcept {
  return static_cast<int>(crash::dispatch({.kind = FileCall::Kind::unlink, .path = path}));
}
int mkdir(const char* path, mode_t mode) noexcept {
  return static_cast<int>(
      crash::dispatch({.kind = FileCall::Kind::mkdir, .path = path, .mode = mode}));
}
int rmdir(const char* path) noexcept {
  return static_cast<int>(crash::dispatch({.kind = FileCall::Kind::rmdir, .path = path}));
}

int fsync(int fd) {
  return static_cast<int>(crash::dispatch({.kind = FileCall::Kind::sync, .fd = fd}));
}
int fdatasync(int fd) {
  return static_cast<int>(
      crash::dispatch({.kind = FileCall::Kind::sync, .fd = fd, .data_only = true}));
}

int ioctl(int fd, unsigned long request, ...) noexcept {
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  if (request != FICLONERANGE) {
    return static_cast<int>(::syscall(SYS_ioctl, fd, request, argument));
  }
  const auto& range = *static_cast<const file_clone_range*>(argument);
  return static_cast<int>(crash::dispatch({.kind = FileCall::Kind::clone,
                                           .fd = fd,
                                           .offset = range.dest_offset,
                                           .length = range.src_length,
                                           .source = static_cast<int>(range.src_fd),
                                           .source_offset = range.src_offset}));
}

}  // extern "C"
