#pragma once

#include <sys/stat.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

namespace cowfs {

/// What a File is about to do; see FaultHook.
enum class FileOperation {
  open,
  read,
  read_cached,  ///< an errno value here means that nothing is cached
  write,
  sync,
  punch,
  allocate,
  truncate,
  clone,
  unlink,
};

/// Called before each system call on data with (path, operation, offset, length in bytes). Returns
/// 0 to let it happen or an errno value to make it fail; may also wait. It is the place where tests
/// inject faults; empty in production. Must be thread-safe.
using FaultHook =
    std::function<int(const std::string&, FileOperation, uint64_t offset, uint64_t length)>;

/// An open file or block device: every system call on data goes through here (and SQLite's VFS).
/// Reads and writes are whole: they go on after EINTR and short transfers. Errors are thrown as
/// Error with the path in the message. Offsets and lengths are bytes. Thread-safe but for close.
class File {
 public:
  /// open(2) with O_CLOEXEC added. The hook must outlive the file.
  File(const std::string& path, int flags, mode_t mode = 0, const FaultHook* hook = nullptr);
  /// A copy of an open descriptor (the same open file description).
  static File copy_of(int fd, const std::string& path);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] const std::string& path() const { return path_; }

  /// Bytes read, less than the size of `buffer` only at the end of the file.
  size_t read(std::span<std::byte> buffer, uint64_t offset) const;
  /// As read, of what is in the host's page cache; stops at the first byte that would have to be
  /// fetched, and never waits. 0 where the host cannot tell.
  [[nodiscard]] size_t read_cached(std::span<std::byte> buffer, uint64_t offset) const;
  /// Lets go of what is cached and need not be written; a hint.
  void drop_cached() const;
  /// EIO if the file ends before `buffer` is full: never makes up zeros.
  void read_exactly(std::span<std::byte> buffer, uint64_t offset) const;
  /// As read_exactly, into several buffers (changed by the call) with one preadv(2) if possible.
  void read_vector(std::span<iovec> buffers, uint64_t offset) const;
  void write(std::span<const std::byte> buffer, uint64_t offset) const;
  /// As write, from several buffers (changed by the call) with one pwritev(2) if possible.
  void write_vector(std::span<iovec> buffers, uint64_t offset) const;

  /// fdatasync(2): data and what is needed to find it are durable.
  void sync_data() const;
  /// fsync(2); on a directory it makes its entries durable.
  void sync() const;

  /// Gives the range's space back; it reads as zeros. The size stays.
  void punch(uint64_t offset, uint64_t length) const;
  /// Reserves space without changing content; the file grows to hold it, since not every host
  /// gives back by `punch` what lies behind the end.
  void allocate(uint64_t offset, uint64_t length) const;
  void truncate(uint64_t size) const;
  /// Shares `length` bytes of `source` at `source_offset` with this file at `offset`
  /// (FICLONERANGE). False where the host file system cannot; nothing has changed then.
  [[nodiscard]] bool clone_range(const File& source, uint64_t source_offset, uint64_t offset,
                                 uint64_t length) const;

  /// Size in bytes, of a block device too.
  [[nodiscard]] uint64_t size() const;
  [[nodiscard]] struct stat status() const;
  /// Start of the next data, or hole, at or after `offset`; the end of the file counts as a hole;
  /// nothing if there is no data behind `offset`. Everything is data where the host cannot tell.
  [[nodiscard]] std::optional<uint64_t> next_data(uint64_t offset) const;
  [[nodiscard]] uint64_t next_hole(uint64_t offset) const;

  /// flock(2), exclusive, without waiting: false if somebody else has it.
  [[nodiscard]] bool try_lock() const;

 private:
  File(int fd, std::string path);
  void check(FileOperation operation, uint64_t offset, uint64_t length, const char* what) const;

  int fd_ = -1;
  std::string path_;
  const FaultHook* hook_ = nullptr;
};

/// Makes the entry of `path` in its directory durable, as far as it is there.
void sync_entry(const std::string& path);

/// unlink(2); a missing file is not an error.
void remove_file(const std::string& path, const FaultHook* hook = nullptr);

}  // namespace cowfs
