// A header that was overwritten
//
// Without it a store is refused, and rightly: nothing else tells its pool from another device. All
// that it holds the catalog holds too, so it can be written anew, if a person says that this is the
// pool. What can be looked at is looked at first: a valid header that is another one says whose the
// pool is, or that it is of another time; what lies between the header and the first slot is zeros
// in every pool; and where images have chunks, something was written. A device that is somebody
// else's now, or one that was made anew, fails one of these.

#include "store/pool_restore.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "store/catalog.h"
#include "store/error.h"
#include "store/layout.h"
#include "store/policy.h"
#include "store/pool_file.h"
#include "store/store_lock.h"

namespace cowfs {
namespace {

using FirstBytes = std::array<std::byte, kPoolHeaderSize>;

bool holds_nothing(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](std::byte byte) { return byte == std::byte{}; });
}

/// What people know it by.
std::string describe_first_bytes(const FirstBytes& bytes) {
  struct Mark {
    size_t at;
    std::string_view bytes;
    const char* what;
  };
  constexpr std::array kMarks{Mark{0, "cowfs pool", "a damaged header of a pool"},
                              Mark{4086, "SWAPSPACE2", "swap space (mkswap)"},
                              Mark{0, "XFSB", "an XFS file system"},
                              Mark{1080, "\x53\xef", "an ext2, ext3 or ext4 file system"},
                              Mark{512, "LABELONE", "a physical volume of LVM"},
                              Mark{0, "LUKS\xba\xbe", "an encrypted volume (LUKS)"},
                              Mark{512, "EFI PART", "a partition table (GPT)"},
                              Mark{510, "\x55\xaa", "a partition table or boot sector"}};
  if (holds_nothing(bytes)) return "zeros";
  for (const Mark& mark : kMarks) {
    if (std::memcmp(&bytes[mark.at], mark.bytes.data(), mark.bytes.size()) == 0) return mark.what;
  }
  return "what is no header of a pool";
}

/// Whether it begins with a valid header, though not with this store's.
bool has_valid_header(const FirstBytes& bytes) {
  try {
    static_cast<void>(unpack_pool_header(bytes));
    return true;
  } catch (const Error& error) {
    return error.code() == EPROTONOSUPPORT;
  }
}

bool is_zero_up_to_slots(const PoolFile& pool) {
  std::vector<std::byte> bytes(kPoolDataOffset - kPoolHeaderSize);
  const size_t length = pool.file().read(bytes, kPoolHeaderSize);
  return holds_nothing(std::span(bytes).first(length));
}

/// Whether any of the first chunks of the runs that are in use is not all zeros; also if none is.
bool shows_use(const PoolFile& pool, Catalog& catalog, ChunkSize chunk) {
  constexpr size_t kMost = 256;
  std::vector<uint64_t> slots;
  catalog.load_used_slots([&](SlotRun run) {
    if (slots.size() < kMost) slots.push_back(run.first);
  });
  std::vector<std::byte> bytes(chunk.bytes());
  const auto is_written = [&](uint64_t slot) {
    const size_t length = pool.file().read(bytes, PoolFile::offset_of(slot, chunk));
    return !holds_nothing(std::span(bytes).first(length));
  };
  return slots.empty() || std::any_of(slots.begin(), slots.end(), is_written);
}

/// Returns its path.
std::string save_first_bytes(const FirstBytes& bytes, const std::string& directory) {
  const std::string first = directory + "/pool.before-restore";
  std::string path = first;
  for (int number = 2; std::filesystem::exists(std::filesystem::symlink_status(path)); ++number) {
    path = first + "." + std::to_string(number);
  }
  const File file(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  file.write(bytes, 0);
  file.sync();
  sync_entry(path);
  return path;
}

}  // namespace

RestoredHeader restore_pool_header(const std::string& directory, bool force) {
  const StoreLock lock(directory, Holder{.pid = ::getpid(), .mount = "", .ending = false});
  Catalog catalog(catalog_path(directory), reading_mode(directory));
  const StoreRow store = catalog.store();
  if (!find_policy(store.policy).has_pool) {
    throw Error::with_message(
        EOPNOTSUPP, "store " + directory + ": has policy " + store.policy + ", and no pool");
  }
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(pool_path(directory), error);
  const PoolFile pool(error ? pool_path(directory) : real.string(), PoolFile::Access::write,
                      nullptr);
  const std::string title = pool_title(pool.path());
  const ChunkSize chunk(store.chunk_size);
  const PoolGeneration generation = catalog.pool_generation();
  const PoolHeader header{
      .uuid = store.uuid, .chunk_size = store.chunk_size, .generation = generation.now};
  bool used = false;
  catalog.load_used_slots([&used](SlotRun) { used = true; });

  FirstBytes bytes{};
  static_cast<void>(pool.file().read(bytes, 0));
  try {
    if (pool.judge(header, generation.before, used) != PoolFile::State::blank) {
      return {.pool = pool.path(), .found = "", .saved = ""};
    }
  } catch (const Error&) {
    if (has_valid_header(bytes)) throw;
  }
  const std::string found = describe_first_bytes(bytes);
  const auto refuse = [&](const std::string& why) {
    throw Error::with_message(
        EUCLEAN, title + ": begins with " + found + ", and " + why +
                     "; if it is the pool nevertheless, what was written over is lost, and --force "
                     "writes the header");
  };
  pool.require_room(catalog.pool_slots(), chunk);
  if (!force && !is_zero_up_to_slots(pool)) {
    refuse(
        "has more than that in its first 2 MiB: it is another file or device, or more than the "
        "header was overwritten");
  }
  if (!force && !shows_use(pool, catalog, chunk)) {
    refuse(
        "holds only zeros where images have chunks: it is another file or device, or was "
        "cleared");
  }
  std::string saved;
  if (!holds_nothing(bytes)) saved = save_first_bytes(bytes, directory);
  pool.write_header(header);
  return {.pool = pool.path(), .found = found, .saved = saved};
}

}  // namespace cowfs
