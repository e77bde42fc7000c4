#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "store/chunk_size.h"
#include "store/file.h"

namespace cowfs {

/// What a pool says of itself in its first 4 KiB; cowfs-format(5) has the bytes.
struct PoolHeader {
  std::string uuid;         ///< of the store that it belongs to
  uint32_t chunk_size = 0;  ///< bytes
  uint64_t generation = 0;  ///< see PoolGeneration
};

/// Which opening of the store for writing was the last: pool and catalog both say it, and belong
/// together only if they say the same. The upper half counts openings; the lower half is random, so
/// that two copies of a store which are each opened once are not taken for one another.
struct PoolGeneration {
  uint64_t now = 0;
  uint64_t before = 0;  ///< what the pool had when this one was begun; 0: nothing
};
/// What comes after it.
uint64_t next_generation(uint64_t generation);
constexpr uint64_t count_of_openings(uint64_t generation) { return generation >> 32U; }

constexpr size_t kPoolHeaderSize = 4096;
/// Where the first slot begins, in bytes: a multiple of every chunk size.
constexpr uint64_t kPoolDataOffset = 2 << 20;

std::array<std::byte, kPoolHeaderSize> pack(const PoolHeader& header);
/// EUCLEAN if it is no header, or is damaged; EPROTONOSUPPORT if it is one of a later version.
PoolHeader unpack_pool_header(std::span<const std::byte> bytes);

/// The file or block device that the chunks of all images of a store lie in (policy `pool`).
/// Thread-safe.
class PoolFile {
 public:
  enum class Access {
    read,
    write,
    create,  ///< as write; a file that does not exist is made, empty
  };
  /// Opens it, for writing as its only user: EBUSY. Its header is not looked at yet.
  PoolFile(const std::string& path, Access access, const FaultHook* hook);

  [[nodiscard]] const File& file() const { return file_; }
  [[nodiscard]] const std::string& path() const { return file_.path(); }
  [[nodiscard]] bool is_device() const { return is_device_; }
  /// Whether opening it made it.
  [[nodiscard]] bool made_here() const { return made_here_; }

  /// Whether there is nothing in it: a file has no data, a device begins with 2 MiB of zeros.
  [[nodiscard]] bool is_blank() const;
  /// EEXIST, saying what to do, if it is not blank: somebody's data may be in it.
  void require_blank() const;
  /// Makes a pool of it; durable.
  void write_header(const PoolHeader& header) const;
  /// Takes the header away again.
  void write_blank() const;

  enum class State {
    current,    ///< it begins with just the header that the catalog speaks of
    cut_short,  ///< with the one before, or sectors of both: a power cut came while it was written
    blank,      ///< with nothing, or sectors of its first header
  };
  /// How it stands to what the catalog says. EUCLEAN, saying what became of it, unless it is the
  /// pool of this store as the catalog knows it. Only one that is not `used` may be blank.
  [[nodiscard]] State judge(const PoolHeader& expected, uint64_t before, bool used) const;

  /// Whether its path still leads to what was opened.
  [[nodiscard]] bool is_in_place() const;

  /// How many slots it has room for.
  [[nodiscard]] uint64_t slots_that_fit(ChunkSize chunk) const;
  /// Returns `slots`. EUCLEAN if it has no room for so many.
  uint64_t require_room(uint64_t slots, ChunkSize chunk) const;
  /// Makes the file as large as so many slots need; durable. EINVAL of a device.
  void make_room(uint64_t slots, ChunkSize chunk) const;

  static uint64_t offset_of(uint64_t slot, ChunkSize chunk) {
    return kPoolDataOffset + slot * chunk.bytes();
  }

 private:
  [[nodiscard]] bool all_zero(uint64_t from, uint64_t to) const;
  [[nodiscard]] bool is_blank_behind_header() const;
  /// EUCLEAN, with what is wrong.
  [[noreturn]] void refuse(std::span<const std::byte> found, const PoolHeader& expected) const;

  bool made_here_ = false;
  File file_;  // opening it says whether it was made
  bool is_device_;
};

/// How messages call a pool.
std::string pool_title(const std::string& path);

/// Where a store has its pool: a file, or a symbolic link to what was named with --pool.
std::string pool_path(const std::string& directory);

}  // namespace cowfs
