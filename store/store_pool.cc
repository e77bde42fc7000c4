// The pool of a store: found, made, and held against the catalog.
//
// STORE/pool is the pool, or a symbolic link to the file or device that was named with --pool. What
// lies elsewhere has to be opened before the process gives up all but the store (Options::confine),
// so it is opened before anything is known of it, and used only after its header was read.
//
// A new pool is blank until the catalog is there; whoever opens the store then finds it blank, with
// a catalog that names no slot of it, and writes the header. So a making that was cut short leaves
// nothing that has to be cleaned up, half a header neither, and a pool with a whole one is always
// somebody's. Where the store has a link only, that has to be somebody's wish: the pool is named.
//
// Each opening for writing begins a generation (PoolGeneration), before it changes anything of the
// pool, and so does each close that is in order. So a copy of the store from before then, or a copy
// of the pool, is refused.

#include <spdlog/logger.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "store/error.h"
#include "store/layout.h"
#include "store/pool.h"
#include "store/store.h"

namespace cowfs {
namespace {

/// As large as a file can be on every host that has no limit below it (ext4).
constexpr uint64_t kLargestPoolFile = uint64_t{15} << 40;

/// The file below a loop device, else the path itself.
std::string below_loop(const std::string& path, const struct stat& status) {
  if (!S_ISBLK(status.st_mode)) return path;
  std::ifstream file("/sys/dev/block/" + std::to_string(major(status.st_rdev)) + ":" +
                     std::to_string(minor(status.st_rdev)) + "/loop/backing_file");
  std::string below;
  return std::getline(file, below) ? below : path;
}

/// Whether what is written to one shows in the other, as far as can be told: a loop device is its
/// file.
bool is_same_storage(const std::string& one, const std::string& other) {
  const auto look = [](const std::string& path, struct stat& status) {
    if (::stat(path.c_str(), &status) != 0) return false;
    const std::string below = below_loop(path, status);
    return ::stat(below.c_str(), &status) == 0;
  };
  struct stat first {};
  struct stat second {};
  if (!look(one, first) || !look(other, second)) return false;
  if (S_ISBLK(first.st_mode) || S_ISBLK(second.st_mode)) {
    return S_ISBLK(first.st_mode) && S_ISBLK(second.st_mode) && first.st_rdev == second.st_rdev;
  }
  return first.st_dev == second.st_dev && first.st_ino == second.st_ino;
}

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

}  // namespace

Space Store::space() const { return policy_at_work_->space().value_or(space_at(facts_.directory)); }

void Store::open_pool(bool there) {
  const std::string own = pool_path(options_.directory);
  const FaultHook* hook = &options_.fault_hook;
  const bool is_new = options_.create && !exists(catalog_path(options_.directory));
  if (is_new) require_pool_wanted();
  if (options_.pool && !options_.base_path.empty() &&
      is_same_storage(*options_.pool, options_.base_path)) {
    throw Error::with_message(
        EINVAL, pool_title(*options_.pool) + ": is the base, which is never written to");
  }
  if (!options_.pool) {
    if (there && exists(own)) {
      // By the name of what the link leads to: that is what people know it by.
      const std::string path = std::filesystem::canonical(own);
      pool_file_ = std::make_unique<PoolFile>(path, PoolFile::Access::write, hook);
    }
    return;
  }
  pool_file_ = std::make_unique<PoolFile>(
      *options_.pool, is_new ? PoolFile::Access::create : PoolFile::Access::write, hook);
  if (is_new) pool_file_->require_blank();
  if (pool_file_->made_here()) sync_entry(*options_.pool);
}

void Store::require_pool_wanted() const {
  if (!options_.pool && !options_.pool_size) return;
  const Policy& policy = find_policy(options_.policy.value_or("sparse"), options_.policies);
  if (policy.has_pool) return;
  throw Error::with_message(EINVAL, "policy " + std::string(policy.name) +
                                        ": has no pool; --pool and --pool-size go with "
                                        "--policy pool");
}

uint64_t Store::plan_pool(ChunkSize chunk) const {
  const std::string title =
      pool_title(pool_file_ ? pool_file_->path() : pool_path(options_.directory));
  uint64_t slots = 0;
  if (pool_file_ && pool_file_->is_device()) {
    if (options_.pool_size) {
      throw Error::with_message(
          EINVAL, title + ": is a device: it has the size it has, and takes none (--pool-size)");
    }
    slots = pool_file_->slots_that_fit(chunk);
  } else {
    const std::string place =
        pool_file_ ? pool_file_->path()
                   : std::filesystem::path(options_.directory).parent_path().string();
    slots = chunk.chunk_of(
        options_.pool_size.value_or(std::min(space_at(place).available, kLargestPoolFile)));
  }
  if (slots == 0) {
    throw Error::with_message(
        EINVAL, title + ": is too small: it has no room for one chunk, besides its first 2 MiB");
  }
  return std::min(slots, SlotMap::kMostSlots);
}

void Store::make_pool(ChunkSize chunk, uint64_t slots) {
  if (!pool_file_) {
    pool_file_ = std::make_unique<PoolFile>(pool_path(options_.directory), PoolFile::Access::create,
                                            &options_.fault_hook);
  }
  pool_file_->require_blank();
  if (!pool_file_->is_device()) pool_file_->make_room(slots, chunk);
  link_pool();
}

void Store::link_pool() {
  if (!options_.pool) return;
  const std::string own = pool_path(options_.directory);
  std::error_code ignored;
  if (std::filesystem::equivalent(own, *options_.pool, ignored)) return;
  const std::string draft = own + ".new";
  remove_file(draft);
  if (::symlink(options_.pool->c_str(), draft.c_str()) != 0 ||
      ::rename(draft.c_str(), own.c_str()) != 0) {
    throw Error{errno, "make the link " + own};
  }
  sync_entry(own);
}

void Store::use_pool() {
  if (!policy_->has_pool) {
    if (options_.pool || options_.pool_size) {
      throw Error::with_message(
          EINVAL, "store " + facts_.directory + ": has policy " + facts_.policy + ", and no pool");
    }
    pool_file_.reset();
    return;
  }
  if (!pool_file_) {
    std::error_code error;
    const std::filesystem::path target =
        std::filesystem::read_symlink(pool_path(facts_.directory), error);
    throw Error::with_message(EUCLEAN, "store " + facts_.directory + ": its pool " +
                                           (error ? pool_path(facts_.directory) : target.string()) +
                                           " is missing, and all that the machines wrote with it; "
                                           "name it with --pool if it lies elsewhere now");
  }
  bool used = false;
  catalog_->load_used_slots([&used](SlotRun) { used = true; });
  const PoolGeneration generation = catalog_->pool_generation();
  pool_state_ = pool_file_->judge(pool_header(generation.now), generation.before, used);
  pool_file_->require_room(catalog_->pool_slots(), ChunkSize(facts_.chunk_size));
  // A link alone may be a stranger's, and lead to a device that nobody wants written to (I10).
  std::error_code ignored;
  if (pool_state_ == PoolFile::State::blank && !options_.pool &&
      std::filesystem::is_symlink(pool_path(facts_.directory), ignored)) {
    throw Error::with_message(EUCLEAN,
                              pool_title(pool_file_->path()) +
                                  ": is not in use yet, or was cleared, and the store has a link "
                                  "to it; if it is to be the pool, name it with --pool");
  }
  const uint64_t bytes = ChunkSize(facts_.chunk_size).offset_of(catalog_->pool_slots());
  if (!made_here_ && options_.pool_size && *options_.pool_size != bytes) {
    options_.log->warn(
        "{}: has {} bytes, and keeps them: --pool-size is for a new one, `cowfs pool grow` "
        "enlarges "
        "it",
        pool_title(pool_file_->path()), bytes);
  }
}

PoolHeader Store::pool_header(uint64_t generation) const {
  return {.uuid = facts_.uuid, .chunk_size = facts_.chunk_size, .generation = generation};
}

void Store::claim_pool() {
  if (!pool_file_) return;
  // What was begun is ended first: the next generation can be told from one before it, not two.
  // Also where it seems to be ended: a sync that failed leaves in the host's cache what is not on
  // disk.
  if (!options_.live->taken_over() || pool_state_ != PoolFile::State::current) {
    const PoolHeader header = pool_header(catalog_->pool_generation().now);
    with_room([&] { pool_file_->write_header(header); });
  }
  link_pool();
  // A server that goes on for one that was killed goes on in its generation: nobody else has had
  // the store since, and there may be no space for a commit.
  if (!options_.live->taken_over()) begin_pool_generation();
}

void Store::begin_pool_generation() {
  const uint64_t before = catalog_->pool_generation().now;
  const uint64_t now = next_generation(before);
  // The catalog first: a pool is never of a generation that its own catalog does not know.
  catalog_->change(
      [&](Catalog::Change& change) { change.set_pool_generation({.now = now, .before = before}); });
  with_room([&] { pool_file_->write_header(pool_header(now)); });
}

void Store::unmake_pool() {
  if (!pool_file_) return;
  attempt([this] {
    pool_file_->write_blank();
    if (pool_file_->made_here()) pool_file_->file().truncate(0);
  });
}

}  // namespace cowfs
