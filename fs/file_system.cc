#include "fs/file_system.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <thread>

#include "fs/check_job.h"
#include "fs/keeper_link.h"
#include "fs/server_notes.h"
#include "store/error.h"
#include "store/pool.h"

namespace cowfs {
namespace {

constexpr size_t kMostDeferredThreads = 64;

}  // namespace

int64_t now_ns() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

FileSystem::FileSystem(Store& store, const ServerConfig& config, Sandbox sandbox)
    : store_(store),
      config_(config),
      sandbox_(std::move(sandbox)),
      presentation_{.uid = config.uid, .gid = config.gid, .umask = config.umask},
      handles_(config.store.live),
      names_changed_ns_(now_ns()),
      deferred_(kMostDeferredThreads),
      parking_(*config.log, [&store](uint64_t id) { return image_title(id, store.name_of(id)); }),
      space_monitor_({.store = store.facts().directory,
                      .what = store.pool() != nullptr ? "pool" : "file system",
                      .marks = config.watermarks,
                      .space = [&store] { return store.space(); }},
                     server_notes(*config.store.live).watermark, *config.log),
      check_job_(std::make_unique<CheckJob>(store, config.log)) {
  if (!config.store.live->taken_over()) return;
  if (server_notes(*config.store.live).waiting_ended != 0) parking_.end_all();
  for (const Handles::Open& open : handles_.all()) {
    if (const std::shared_ptr<Image> image = store.find(open.image)) image->acquire();
  }
  store.free_unused();
}

FileSystem::~FileSystem() = default;

void FileSystem::note_keeper(const KeeperLink& keeper) {
  *keeper_.lock() = {.pid = keeper.keeper(),
                     .restarts = keeper.restarts(),
                     .last_restart_ns = keeper.last_restart_ns(),
                     .held = {}};
}

void FileSystem::note_orphaned(const KeeperLink& keeper) {
  KeeperFacts facts{.pid = 0,
                    .restarts = keeper.restarts(),
                    .last_restart_ns = keeper.last_restart_ns(),
                    .held = keeper.all_held()};
  // Of the first server: its own, which it had its keeper hold.
  facts.held["lock-directory"] = store_.lock().directory_fd();
  facts.held["lock-file"] = store_.lock().file_fd();
  *keeper_.lock() = std::move(facts);
}

unsigned FileSystem::threads() {
  // More than the processors: a thread that reads a cold base waits for the disk.
  // Asked once: the C library reads a file for it.
  static const unsigned threads = std::clamp(4 * std::thread::hardware_concurrency(), 8U, 32U);
  return threads;
}

std::shared_ptr<Image> FileSystem::image(uint64_t inode) {
  std::shared_ptr<Image> image = store_.find(inode);
  if (image == nullptr) throw Error(ENOENT, "inode " + std::to_string(inode));
  return image;
}

std::shared_ptr<Image> FileSystem::image(const char* name) {
  std::shared_ptr<Image> image = store_.find(std::string_view(name));
  if (image == nullptr) throw Error(ENOENT, "image");
  return image;
}

struct stat FileSystem::status(Image& image) const {
  return status_of(image, presentation_);
}

struct stat FileSystem::root_status() {
  return status_of_root(store_.image_count(), presentation_, names_changed_ns_.load());
}

void FileSystem::note_names_changed() { names_changed_ns_ = now_ns(); }

void FileSystem::note_written(Image& image) const {
  if (writeback()) return;
  const int64_t now = now_ns();
  image.set_times(std::nullopt, now, now);
}

uint64_t FileSystem::size_in_kernel(Image& image) {
  const uint64_t ours = image.size();
  const std::optional<std::string> name = store_.name_of(image.id());
  if (!name) return ours;
  struct statx status {};
  const std::string path = config_.mount_point + "/" + *name;
  // DONT_SYNC: the answer comes from the kernel's inode, which is what we are after.
  if (::statx(AT_FDCWD, path.c_str(), AT_STATX_DONT_SYNC | AT_SYMLINK_NOFOLLOW,
              STATX_SIZE | STATX_INO, &status) != 0 ||
      status.stx_ino != image.id()) {
    return ours;
  }
  return std::max<uint64_t>(ours, status.stx_size);
}

nlohmann::json FileSystem::describe_mount() {
  const StoreFacts& facts = store_.facts();
  // The store's directory may have been deleted or moved away beneath us.
  std::optional<Space> space;
  try {
    space = store_.space();
  } catch (const Error& error) {
    if (error.code() != ENOENT) throw;
  }
  const auto of_space = [&](auto value) {
    return space ? nlohmann::json(value(*space)) : nlohmann::json();
  };
  const std::optional<unsigned> watermark = space_monitor_.reached();
  const std::optional<int64_t> written = store_.base_written_ns();
  const KeeperFacts keeper = *keeper_.lock();
  nlohmann::json backing = nlohmann::json::array();
  for (const BaseLink& file : facts.backing) {
    backing.push_back({{"path", file.path}, {"format", format_name(file.format)}});
  }
  return {{"mount", config_.mount_point},
          {"base", facts.base_path},
          {"base_format", format_name(facts.base_format)},
          {"base_snapshot",
           facts.base_snapshot ? nlohmann::json(*facts.base_snapshot) : nlohmann::json()},
          {"backing", backing},
          {"base_size", facts.base_size},
          {"base_written_ns", written ? nlohmann::json(*written) : nlohmann::json()},
          {"store", facts.directory},
          {"chunk_size", facts.chunk_size},
          {"policy", facts.policy},
          {"pool", describe_pool()},
          {"format_version", facts.format_version},
          {"images", store_.image_count()},
          {"failed_images", store_.failed_images()},
          {"own_bytes", store_.own_bytes()},
          {"free_bytes", of_space([](const Space& is) { return is.available; })},
          {"total_bytes", of_space([](const Space& is) { return is.total; })},
          {"used_percent", of_space(used_percent)},
          {"watermark", watermark ? nlohmann::json(*watermark) : nlohmann::json()},
          {"cache", writeback() ? "writeback" : "none"},
          {"full", waits_for_space() ? "wait" : "error"},
          {"parked", parking_.count()},
          {"read_only", config_.read_only},
          {"server_pid", ::getpid()},
          {"keeper_pid", keeper.pid > 0 ? nlohmann::json(keeper.pid) : nlohmann::json()},
          {"restarts", keeper.restarts},
          {"last_restart_ns",
           keeper.last_restart_ns > 0 ? nlohmann::json(keeper.last_restart_ns) : nlohmann::json()},
          {"resend", resend_ == Resend::slots ? "slots" : "kernel"},
          {"sandbox", to_json(sandbox_)},
          {"version", COWFS_VERSION}};
}

nlohmann::json FileSystem::describe_pool() {
  Pool* const pool = store_.pool();
  if (pool == nullptr) return nullptr;
  const Space space = pool->space();
  return {{"path", pool->pool_file().path()},
          {"device", pool->pool_file().is_device()},
          {"size", space.total},
          {"free_bytes", space.free}};
}

nlohmann::json FileSystem::grow_pool(std::optional<uint64_t> bytes) {
  Pool* const pool = store_.pool();
  if (pool == nullptr) throw Error(EOPNOTSUPP, "ioctl");
  try {
    pool->grow(bytes);
  } catch (const Error& error) {
    return {{"error", error.what()}, {"code", error.code()}};
  }
  config_.log->info("{}: has {} bytes now", pool_title(pool->pool_file().path()),
                    pool->space().total);
  return {{"pool", describe_pool()}};
}

nlohmann::json FileSystem::describe_descriptors() {
  const KeeperFacts keeper = *keeper_.lock();
  if (keeper.pid > 0 || keeper.held.empty()) throw Error(EBUSY, "ioctl");
  return {{"server_pid", ::getpid()},
          {"restarts", keeper.restarts},
          {"last_restart_ns", keeper.last_restart_ns},
          {"descriptors", keeper.held}};
}

nlohmann::json FileSystem::describe(Image& image) {
  nlohmann::json answer{{"own_bytes", image.own_bytes()},
                        {"openers", handles_.count(image.id()).openers},
                        {"layer", image.layer_id()},
                        {"created_ns", image.attributes().btime_ns},
                        {"failure", nullptr},
                        {"space_limit", nullptr},
                        {"parked", parking_.count(image.id())},
                        {"cow_file", nullptr}};
  const auto failure = image.failure();
  if (const auto why = failure ? failure : image.refusal()) answer["failure"] = *why;
  if (const auto limit = image.space_limit()) answer["space_limit"] = *limit;
  if (const auto path = cow_file(store_.facts().directory, image.layer_id())) {
    answer["cow_file"] = *path;
  }
  return answer;
}

void FileSystem::end_waiting() {
  if (!waits_for_space()) return;
  const size_t waiting = parking_.count();
  config_.log->warn(
      "full: {}: writes without space do not wait any more, but fail, from now to the next mount{}",
      config_.mount_point,
      waiting > 0 ? "; requests that waited, ended with an error: " + std::to_string(waiting) : "");
  server_notes(*config_.store.live).waiting_ended = 1;
  parking_.end_all();
}

void FileSystem::end_waiting(const Image& image) {
  if (!waits_for_space()) return;
  config_.log->warn(
      "{}: its writes without space do not wait any more, but fail, from now to the next mount",
      image.title());
  parking_.end(image.id());
}

void FileSystem::log_error(const char* operation, uint64_t inode, const std::string& what) {
  constexpr uint64_t kDirectory = 1;
  if (std::string_view(operation) == "write") ++lost_writes_;
  const std::string place =
      inode == kDirectory ? config_.mount_point : image_title(inode, store_.name_of(inode));
  const std::string subject = std::string(operation) + ": " + place;
  const std::optional<uint64_t> held_back = rate_limit_.pass(subject);
  if (!held_back) return;
  const std::string_view reason = without_subject(what, place);
  if (*held_back > 0) {
    config_.log->error("{}: {} ({} more like this in between)", subject, reason, *held_back);
  } else {
    config_.log->error("{}: {}", subject, reason);
  }
}

void FileSystem::finish() {
  parking_.finish();
  deferred_.finish();
}

bool FileSystem::begin_flush_here() {
  if (flushes_here_.fetch_add(1) < threads() / 2) return true;
  --flushes_here_;
  return false;
}

void FileSystem::end_flush_here() { --flushes_here_; }

}  // namespace cowfs
