#include "tests/crash/recorder.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <string_view>
#include <thread>

#include "store/error.h"

namespace cowfs::crash {
namespace {

struct stat status_of(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) throw Error(errno, path);
  return status;
}

/// What a file holds, which no fault keeps from the recorder.
long read_back(int fd, std::span<std::byte> bytes, uint64_t offset) {
  return perform({.kind = FileCall::Kind::read,
                  .fd = fd,
                  .offset = offset,
                  .length = bytes.size(),
                  .data = {{bytes.data(), bytes.size()}}});
}

}  // namespace

Recorder::Recorder(std::string root, bool reflinks) : root_(std::move(root)), reflinks_(reflinks) {
  const struct stat status = status_of(root_);
  inodes_[{status.st_dev, status.st_ino}] = kRoot;
  set_interposer(this);
}

Recorder::~Recorder() { stop(); }

void Recorder::stop() { set_interposer(nullptr); }

void Recorder::set_during_sync(std::function<void()> action) {
  const std::lock_guard lock(mutex_);
  during_sync_ = std::move(action);
  during_thread_ = std::this_thread::get_id();
}

Position Recorder::mark() {
  const std::lock_guard lock(mutex_);
  return next_++;
}

void Recorder::settle() {
  const std::lock_guard lock(mutex_);
  std::set<Inode> all;
  for (const Operation& operation : operations_) all.insert(operation.inode);
  for (const Inode inode : all) {
    const Position begin = next_++;
    operations_.push_back(
        {.kind = Operation::Kind::sync, .at = begin, .end = next_++, .inode = inode});
  }
}

void Recorder::kill_after(unsigned more) {
  const std::lock_guard lock(mutex_);
  lives_ = more + 1;
}

void Recorder::kill() {
  const std::lock_guard lock(mutex_);
  killed_ = true;
}

bool Recorder::killed() {
  const std::lock_guard lock(mutex_);
  return killed_;
}

void Recorder::revive() {
  const std::lock_guard lock(mutex_);
  killed_ = false;
  lives_ = 0;
}

bool Recorder::alive() {
  if (lives_ > 0 && --lives_ == 0) killed_ = true;
  return !killed_;
}

bool Recorder::below_root(const char* path) const {
  const std::string_view text(path);
  // SQLite makes its shared memory anew when the first process opens the database.
  return text.starts_with(root_) && text.substr(root_.size()).starts_with("/") &&
         !text.ends_with("-shm");
}

Recorder::Place Recorder::place_of(const char* path) const {
  std::string_view rest = std::string_view(path).substr(root_.size() + 1);
  Inode directory = kRoot;
  while (true) {
    const size_t slash = rest.find('/');
    const std::string name(rest.substr(0, slash));
    const Inode inode = live_.lookup(directory, name);
    if (slash == std::string_view::npos) return {directory, name, inode};
    directory = inode;
    rest = rest.substr(slash + 1);
  }
}

Inode Recorder::inode_of(int fd) const {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return 0;
  const auto found = inodes_.find({status.st_dev, status.st_ino});
  return found == inodes_.end() ? 0 : found->second;
}

long Recorder::around(FileCall& call) {
  if (faults_ != nullptr) {
    if (const std::optional<int> code = faults_->apply(call)) {
      errno = *code;
      return -1;
    }
  }
  if (call.kind == FileCall::Kind::read) return perform(call);
  const bool by_name = call.fd < 0;
  if (by_name && (!below_root(call.path) ||
                  (call.kind == FileCall::Kind::open && (call.flags & (O_CREAT | O_TRUNC)) == 0))) {
    return perform(call);
  }
  if (jumpy_) std::this_thread::yield();
  std::unique_lock lock(mutex_);
  if (by_name) return change_names(call);
  const Inode inode = inode_of(call.fd);
  if (inode == 0) return perform(call);
  if (call.kind == FileCall::Kind::sync) {
    lock.unlock();
    return sync(call, inode);
  }
  return change(call);
}

long Recorder::sync(const FileCall& call, Inode inode) {
  size_t index = 0;
  std::function<void()> action;
  {
    const std::lock_guard lock(mutex_);
    if (!alive()) return 0;
    index = operations_.size();
    operations_.push_back({.kind = Operation::Kind::sync, .at = next_++, .inode = inode});
    if (during_thread_ == std::this_thread::get_id()) action = during_sync_;
  }
  if (action) action();
  if (jumpy_) std::this_thread::sleep_for(std::chrono::microseconds(100));
  const long result = perform(call);
  const std::lock_guard lock(mutex_);
  if (result == 0 && alive()) operations_[index].end = next_++;
  return result;
}

// What a dead process's call returns: success, so that it comes to its end.
long Recorder::pretend(const FileCall& call) const {
  switch (call.kind) {
    case FileCall::Kind::open: {
      FileCall harmless = call;
      harmless.flags &= ~(O_CREAT | O_TRUNC | O_EXCL);
      const long fd = perform(harmless);
      return fd >= 0 ? fd : ::memfd_create("dead", MFD_CLOEXEC);
    }
    case FileCall::Kind::write:
      return static_cast<long>(call.length);
    default:
      return 0;
  }
}

void Recorder::record(Operation operation) {
  operation.at = next_++;
  live_.apply(operation);
  operations_.push_back(std::move(operation));
}

// The sectors are read back: what they hold besides the data belongs to them.
void Recorder::record_write(Inode inode, uint64_t offset, uint64_t length, int fd) {
  const uint64_t start = offset / kSector * kSector;
  const uint64_t end = (offset + length + kSector - 1) / kSector * kSector;
  std::vector<std::byte> sectors(end - start);
  // The descriptor may be open for writing only.
  const std::string again = "/proc/self/fd/" + std::to_string(fd);
  const long reader =
      perform({.kind = FileCall::Kind::open, .path = again.c_str(), .flags = O_RDONLY | O_CLOEXEC});
  const long count = read_back(static_cast<int>(reader), sectors, start);
  ::close(static_cast<int>(reader));
  sectors.resize(static_cast<size_t>(std::max<long>(count, 0)));
  record({.kind = Operation::Kind::write,
          .inode = inode,
          .offset = offset,
          .length = length,
          .sectors = std::move(sectors)});
}

// By copying: what reflinks do, as far as content goes.
long Recorder::clone(const FileCall& call, Inode inode) {
  if (!reflinks_) {
    errno = EOPNOTSUPP;
    return -1;
  }
  std::vector<std::byte> bytes(call.length);
  const long count = read_back(call.source, bytes, call.source_offset);
  if (count != static_cast<long>(bytes.size())) {
    errno = EINVAL;
    return -1;
  }
  const long written = perform({.kind = FileCall::Kind::write,
                                .fd = call.fd,
                                .offset = call.offset,
                                .length = call.length,
                                .data = {{bytes.data(), bytes.size()}}});
  if (written != count) return -1;
  record_write(inode, call.offset, call.length, call.fd);
  return 0;
}

long Recorder::change(FileCall& call) {
  const Inode inode = inode_of(call.fd);
  if (!alive()) return pretend(call);
  if (call.kind == FileCall::Kind::write && !call.positioned) {
    call.offset = static_cast<uint64_t>(::lseek(call.fd, 0, SEEK_CUR));
  }
  if (call.kind == FileCall::Kind::clone) return clone(call, inode);
  const long result = perform(call);
  if (result < 0) return result;
  switch (call.kind) {
    case FileCall::Kind::write:
      if (result > 0) {
        record_write(inode, call.offset, static_cast<uint64_t>(result), call.fd);
      }
      break;
    case FileCall::Kind::truncate:
      record({.kind = Operation::Kind::truncate, .inode = inode, .length = call.length});
      break;
    case FileCall::Kind::allocate:
      record({.kind = (call.flags & FALLOC_FL_PUNCH_HOLE) != 0 ? Operation::Kind::punch
                                                               : Operation::Kind::allocate,
              .inode = inode,
              .offset = call.offset,
              .length = call.length});
      break;
    default:
      break;
  }
  return result;
}

long Recorder::change_names(FileCall& call) {
  const Place place = place_of(call.path);
  // Opening what is there changes nothing.
  const bool there = place.inode != 0;
  if (call.kind == FileCall::Kind::open && there && (call.flags & O_TRUNC) == 0) {
    return perform(call);
  }
  if (!alive()) return pretend(call);
  const long result = perform(call);
  if (result < 0) return result;
  switch (call.kind) {
    case FileCall::Kind::open:
      if (there) {
        record({.kind = Operation::Kind::truncate, .inode = place.inode});
        break;
      }
      [[fallthrough]];
    case FileCall::Kind::mkdir: {
      const struct stat status = status_of(call.path);
      const Inode inode = ++last_inode_;
      inodes_[{status.st_dev, status.st_ino}] = inode;
      record({.kind = Operation::Kind::link,
              .inode = place.directory,
              .name = place.name,
              .target = inode,
              .is_directory = S_ISDIR(status.st_mode)});
      break;
    }
    case FileCall::Kind::unlink:
    case FileCall::Kind::rmdir:
      record({.kind = Operation::Kind::unlink, .inode = place.directory, .name = place.name});
      break;
    case FileCall::Kind::rename: {
      const Place target = place_of(call.new_path);
      record({.kind = Operation::Kind::rename,
              .inode = target.directory,
              .name = target.name,
              .target = place.inode,
              .old_directory = place.directory,
              .old_name = place.name});
      break;
    }
    default:
      break;
  }
  return result;
}

}  // namespace cowfs::crash
