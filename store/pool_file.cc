// What a pool begins with
//
//   offset  bytes
//        0     16  "cowfs pool", then zeros
//       16      4  version of this layout: 1
//       20      4  chunk size in bytes
//       24      8  offset of the first slot in bytes: 2 MiB
//       32     36  the store's UUID, as text
//       68      8  generation: see PoolGeneration
//       76         zeros
//     4080     16  XXH3-128 over all before it, canonical
//
// Integers are little-endian. Slot n lies at 2 MiB + n * chunk size. Every byte of the first 4 KiB
// counts, so whatever mkfs(8), mkswap(8), a partition table or LVM puts there is seen. Which slots
// are in use, and how many there are, the catalog says alone: so one that is older than its pool
// would take for free what is in use, and the generation tells that.
//
// The catalog has the number of the next generation, durably, before the header does, and knows the
// one before. Both headers are known byte for byte, so one that a power cut left half written is
// told from anything else: each of its sectors is of one of the two.

#include "store/pool_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <random>
#include <string_view>
#include <vector>

#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr std::string_view kPoolMagic("cowfs pool\0\0\0\0\0\0", 16);
constexpr uint32_t kPoolVersion = 1;
constexpr size_t kVersionAt = 16;
constexpr size_t kChunkSizeAt = 20;
constexpr size_t kDataOffsetAt = 24;
constexpr size_t kUuidAt = 32;
constexpr size_t kUuidLength = 36;
constexpr size_t kGenerationAt = 68;
constexpr size_t kHashLength = 16;
constexpr size_t kHashAt = kPoolHeaderSize - kHashLength;

template <typename T>
void put_little(std::span<std::byte> bytes, size_t at, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    bytes[at + i] = static_cast<std::byte>(static_cast<uint64_t>(value) >> (8 * i));
  }
}

template <typename T>
T get_little(std::span<const std::byte> bytes, size_t at) {
  uint64_t value = 0;
  for (size_t i = sizeof(T); i-- > 0;)
    value = value << 8U | std::to_integer<uint64_t>(bytes[at + i]);
  return static_cast<T>(value);
}

XXH128_canonical_t hash_of(std::span<const std::byte> header) {
  XXH128_canonical_t hash;
  XXH128_canonicalFromHash(&hash, XXH3_128bits(header.data(), kHashAt));
  return hash;
}

using HeaderBytes = std::array<std::byte, kPoolHeaderSize>;

/// Whether each of its sectors, which are written whole or not at all, is of one of these.
bool is_made_of(const HeaderBytes& found, std::initializer_list<HeaderBytes> headers) {
  constexpr size_t kSector = 512;
  for (size_t at = 0; at < kPoolHeaderSize; at += kSector) {
    const auto is_of = [&](const HeaderBytes& header) {
      return std::memcmp(&found[at], &header[at], kSector) == 0;
    };
    if (std::none_of(headers.begin(), headers.end(), is_of)) return false;
  }
  return true;
}

File open_pool(const std::string& path, PoolFile::Access access, const FaultHook* hook,
               bool& made) {
  const bool writes = access != PoolFile::Access::read;
  struct stat status {};
  const bool there = ::stat(path.c_str(), &status) == 0;
  if (!there && (errno != ENOENT || access != PoolFile::Access::create)) {
    throw Error(errno, pool_title(path));
  }
  if (!there && ::lstat(path.c_str(), &status) == 0) {
    throw Error::with_message(ENOENT, pool_title(path) + ": is a symbolic link that leads nowhere");
  }
  // What is made there is gone with the next boot, and takes memory.
  if (!there && path.starts_with("/dev/") && !path.starts_with("/dev/shm/")) {
    throw Error::with_message(ENOENT, pool_title(path) + ": there is no such device");
  }
  if (there && !S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    throw Error::with_message(EINVAL,
                              pool_title(path) + ": is neither a regular file nor a block device");
  }
  int flags = writes ? O_RDWR : O_RDONLY;
  if (!there) flags |= O_CREAT | O_EXCL;
  // Of a device: nobody has it mounted, and nobody else takes it for his own.
  if (there && S_ISBLK(status.st_mode) && writes) flags |= O_EXCL;
  try {
    File file(path, flags, 0600, hook);
    made = !there;
    // Copies of a store have links to one pool.
    if (writes && !(there && S_ISBLK(status.st_mode)) && !file.try_lock()) throw Error(EBUSY, path);
    int read_only = 0;
    if (writes && there && S_ISBLK(status.st_mode) &&
        ::ioctl(file.fd(), BLKROGET, &read_only) == 0 && read_only != 0) {
      throw Error::with_message(EROFS, pool_title(path) + ": the device is read-only");
    }
    return file;
  } catch (const Error& error) {
    if (error.code() == EROFS) throw;
    if (error.code() != EBUSY) throw Error(error.code(), pool_title(path));
    throw Error::with_message(
        EBUSY, pool_title(path) +
                   ": is in use: another store's, mounted, or another program's (see "
                   "lsblk(8) for a device)");
  }
}

}  // namespace

std::string pool_title(const std::string& path) { return "pool " + path; }
std::string pool_path(const std::string& directory) { return directory + "/pool"; }

std::array<std::byte, kPoolHeaderSize> pack(const PoolHeader& header) {
  std::array<std::byte, kPoolHeaderSize> bytes{};
  std::memcpy(bytes.data(), kPoolMagic.data(), kPoolMagic.size());
  put_little(bytes, kVersionAt, kPoolVersion);
  put_little(bytes, kChunkSizeAt, header.chunk_size);
  put_little(bytes, kDataOffsetAt, kPoolDataOffset);
  std::memcpy(&bytes[kUuidAt], header.uuid.data(), std::min(header.uuid.size(), kUuidLength));
  put_little(bytes, kGenerationAt, header.generation);
  const XXH128_canonical_t hash = hash_of(bytes);
  std::memcpy(&bytes[kHashAt], hash.digest, kHashLength);
  return bytes;
}

PoolHeader unpack_pool_header(std::span<const std::byte> bytes) {
  if (bytes.size() < kPoolHeaderSize ||
      std::memcmp(bytes.data(), kPoolMagic.data(), kPoolMagic.size()) != 0) {
    throw Error::with_message(EUCLEAN, "does not begin as a pool does");
  }
  if (const auto version = get_little<uint32_t>(bytes, kVersionAt); version != kPoolVersion) {
    throw Error::with_message(EPROTONOSUPPORT, "has version " + std::to_string(version) +
                                                   ", this program knows version 1 only");
  }
  const XXH128_canonical_t hash = hash_of(bytes);
  if (std::memcmp(&bytes[kHashAt], hash.digest, kHashLength) != 0 ||
      get_little<uint64_t>(bytes, kDataOffsetAt) != kPoolDataOffset) {
    throw Error::with_message(EUCLEAN, "its first 4 KiB are not what was written there");
  }
  const auto* uuid = reinterpret_cast<const char*>(&bytes[kUuidAt]);
  return {.uuid = std::string(uuid, kUuidLength),
          .chunk_size = get_little<uint32_t>(bytes, kChunkSizeAt),
          .generation = get_little<uint64_t>(bytes, kGenerationAt)};
}

uint64_t next_generation(uint64_t generation) {
  constexpr uint64_t kMost = INT32_MAX;  // SQLite's integers are signed
  std::random_device random;
  const uint64_t count = std::min(count_of_openings(generation) + 1, kMost);
  return count << 32U | (random() & UINT32_MAX);
}

PoolFile::PoolFile(const std::string& path, Access access, const FaultHook* hook)
    : file_(open_pool(path, access, hook, made_here_)),
      is_device_(S_ISBLK(file_.status().st_mode)) {}

bool PoolFile::is_blank() const {
  if (!is_device_) return !file_.next_data(0).has_value();
  return all_zero(0, kPoolDataOffset);
}

bool PoolFile::all_zero(uint64_t from, uint64_t to) const {
  std::vector<std::byte> bytes(static_cast<size_t>(to - from));
  const size_t length = file_.read(bytes, from);
  return std::all_of(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length),
                     [](std::byte byte) { return byte == std::byte{}; });
}

void PoolFile::require_blank() const {
  if (is_blank()) return;
  std::string what = is_device_ ? "holds something: its first 2 MiB are not zeros"
                                : "holds something: the file is not empty";
  try {
    std::array<std::byte, kPoolHeaderSize> bytes{};
    const size_t length = file_.read(bytes, 0);
    what = "is the pool of the store with UUID " +
           printable(unpack_pool_header(std::span(bytes).first(length)).uuid);
  } catch (const Error&) {
    // Somebody else's.
  }
  const std::string way = is_device_ ? "clear it with `dd if=/dev/zero of=" + path() +
                                           " bs=1M count=2`, or `blkdiscard`"
                                     : std::string("remove it, or name another");
  throw Error::with_message(
      EEXIST, pool_title(path()) + ": " + what + "; if that is of no use any more, " + way);
}

void PoolFile::write_header(const PoolHeader& header) const {
  file_.write(pack(header), 0);
  file_.sync();
}

void PoolFile::write_blank() const {
  file_.write(std::array<std::byte, kPoolHeaderSize>{}, 0);
  file_.sync();
}

bool PoolFile::is_blank_behind_header() const {
  return is_device_ ? all_zero(kPoolHeaderSize, kPoolDataOffset)
                    : !file_.next_data(kPoolHeaderSize).has_value();
}

PoolFile::State PoolFile::judge(const PoolHeader& expected, uint64_t before, bool used) const {
  HeaderBytes found{};
  const size_t length = file_.read(found, 0);
  const HeaderBytes current = pack(expected);
  if (found == current) return State::current;
  if (before != 0) {
    PoolHeader earlier = expected;
    earlier.generation = before;
    if (is_made_of(found, {current, pack(earlier)})) return State::cut_short;
  }
  if (!used && is_made_of(found, {current, HeaderBytes{}}) && is_blank_behind_header()) {
    return State::blank;
  }
  refuse(std::span(found).first(length), expected);
}

void PoolFile::refuse(std::span<const std::byte> bytes, const PoolHeader& expected) const {
  const std::string title = pool_title(path());
  PoolHeader found;
  try {
    found = unpack_pool_header(bytes);
  } catch (const Error& error) {
    throw Error::with_message(error.code() == EPROTONOSUPPORT ? EPROTONOSUPPORT : EUCLEAN,
                              title + ": " + error.what() +
                                  ": it is another file or device, or somebody wrote to it (mkfs, "
                                  "say); name the right one with --pool; if this is it, `cowfs "
                                  "pool restore-header STORE` writes its header anew");
  }
  if (found.uuid != expected.uuid) {
    throw Error::with_message(EUCLEAN, title + ": belongs to another store, of UUID " +
                                           printable(found.uuid) + ", not " + expected.uuid +
                                           "; name the right one with --pool");
  }
  if (found.chunk_size != expected.chunk_size) {
    throw Error::with_message(
        EUCLEAN, title + ": has chunks of " + std::to_string(found.chunk_size) +
                     " bytes, and the catalog says " + std::to_string(expected.chunk_size));
  }
  const uint64_t of_pool = count_of_openings(found.generation);
  const uint64_t of_catalog = count_of_openings(expected.generation);
  const std::string counts = " (opening " + std::to_string(of_pool) + "; the catalog knows " +
                             std::to_string(of_catalog) + ")";
  if (of_pool > of_catalog) {
    throw Error::with_message(
        EUCLEAN, title +
                     ": is newer than the catalog: another copy of the store has used it since" +
                     counts +
                     "; use that copy, or put its catalog.db here: what this one would write goes "
                     "over what that one has written");
  }
  if (of_pool < of_catalog) {
    throw Error::with_message(
        EUCLEAN, title +
                     ": is older than the catalog: it is a copy of an earlier time, and lacks "
                     "what was written since" +
                     counts + "; name the right one with --pool");
  }
  throw Error::with_message(
      EUCLEAN, title + ": was used by another copy of the store, and is not the pool of this one" +
                   counts + "; name the one that this copy used last with --pool");
}

bool PoolFile::is_in_place() const {
  struct stat now {};
  const struct stat opened = file_.status();
  return ::stat(path().c_str(), &now) == 0 && now.st_dev == opened.st_dev &&
         now.st_ino == opened.st_ino;
}

uint64_t PoolFile::slots_that_fit(ChunkSize chunk) const {
  const uint64_t size = file_.size();
  return size < kPoolDataOffset ? 0 : chunk.chunk_of(size - kPoolDataOffset);
}

uint64_t PoolFile::require_room(uint64_t slots, ChunkSize chunk) const {
  const uint64_t fit = slots_that_fit(chunk);
  if (fit >= slots) return slots;
  throw Error::with_message(
      EUCLEAN,
      pool_title(path()) + ": damaged: it has become shorter: it has room for " +
          std::to_string(fit) + " chunks, and had for " + std::to_string(slots) +
          "; give it its size back, with what was there, or name the right one with --pool");
}

void PoolFile::make_room(uint64_t slots, ChunkSize chunk) const {
  if (is_device_) {
    throw Error::with_message(EINVAL, pool_title(path()) + ": is a device: it has the size it has");
  }
  const uint64_t size = offset_of(slots, chunk);
  try {
    file_.truncate(size);
  } catch (const Error& error) {
    if (error.code() != EFBIG) throw;
    throw Error::with_message(EFBIG, pool_title(path()) + ": its file system takes no file of " +
                                         std::to_string(size) +
                                         " bytes; let the pool be smaller, or lie elsewhere");
  }
  file_.sync();
}

}  // namespace cowfs
