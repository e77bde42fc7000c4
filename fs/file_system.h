#pragma once

#include <spdlog/fwd.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "fs/control.h"
#include "fs/deferred.h"
#include "fs/handles.h"
#include "fs/inodes.h"
#include "fs/parking.h"
#include "fs/rate_limit.h"
#include "fs/sandbox.h"
#include "fs/server.h"
#include "fs/space_monitor.h"
#include "store/store.h"

namespace cowfs {

class CheckJob;
class KeeperLink;

/// What the operations of one mount work on: the store and what only a mount knows of. Thread-safe.
class FileSystem {
 public:
  /// `sandbox` is to be told of.
  FileSystem(Store& store, const ServerConfig& config, Sandbox sandbox);
  FileSystem(const FileSystem&) = delete;
  FileSystem& operator=(const FileSystem&) = delete;
  ~FileSystem();

  [[nodiscard]] Store& store() { return store_; }
  [[nodiscard]] const ServerConfig& config() const { return config_; }
  [[nodiscard]] bool writeback() const { return config_.cache == CacheMode::writeback; }
  [[nodiscard]] Handles& handles() { return handles_; }
  [[nodiscard]] Deferred& deferred() { return deferred_; }
  [[nodiscard]] Parking& parking() { return parking_; }
  [[nodiscard]] CheckJob& check_job() { return *check_job_; }
  [[nodiscard]] SpaceMonitor& space_monitor() { return space_monitor_; }
  /// Whether what finds no space waits for some.
  [[nodiscard]] bool waits_for_space() {
    return config_.full == FullMode::wait && !parking_.ended();
  }
  /// Ends what waits with an error, for good, and tells the log.
  void end_waiting();
  void end_waiting(const Image& image);

  /// ENOENT if there is no such image, also if it was removed.
  [[nodiscard]] std::shared_ptr<Image> image(uint64_t inode);
  [[nodiscard]] std::shared_ptr<Image> image(const char* name);
  [[nodiscard]] struct stat status(Image& image) const;
  [[nodiscard]] struct stat root_status();
  void note_names_changed();

  /// Times that the server keeps because the kernel does not (without the writeback cache).
  void note_written(Image& image) const;

  /// The image's size as the kernel has it, which is ahead of ours while it holds back writes that
  /// extend the image. Asks the kernel's cache through the mount: not from a thread that serves
  /// requests, since that may need an answer from one.
  [[nodiscard]] uint64_t size_in_kernel(Image& image);

  /// The answer to a ControlMessage on the directory, or on an image.
  [[nodiscard]] nlohmann::json describe_mount();
  [[nodiscard]] nlohmann::json describe(Image& image);
  /// Of the store's pool; null if it has none.
  [[nodiscard]] nlohmann::json describe_pool();
  /// See fs/control.h.
  [[nodiscard]] nlohmann::json grow_pool(std::optional<uint64_t> bytes);
  /// What another keeper asks for; EBUSY while there is one.
  [[nodiscard]] nlohmann::json describe_descriptors();

  /// Logs an error that a request is answered with, few times if it repeats, and counts the writes
  /// among them: what they brought may be taken for written.
  void log_error(const char* operation, uint64_t inode, const std::string& what);

  [[nodiscard]] uint64_t lost_writes() const { return lost_writes_.load(); }

  /// Whether a flush may keep the calling thread from reading requests; see Deferred. Each begin
  /// that returned true needs an end.
  [[nodiscard]] bool begin_flush_here();
  void end_flush_here();

  [[nodiscard]] static unsigned threads();

  /// Has every request that was set aside answered. The session has ended, and is still there.
  void finish();
  /// The same, but for those that wait for space, which come again to the server after this one.
  void finish_deferred() { deferred_.finish(); }

  /// What is told of the keeper from now on.
  void note_keeper(const KeeperLink& keeper);
  void note_resend(Resend resend) { resend_ = resend; }
  /// It is gone.
  void note_orphaned(const KeeperLink& keeper);

 private:
  Store& store_;
  const ServerConfig& config_;
  const Sandbox sandbox_;
  const Presentation presentation_;
  Handles handles_;
  RateLimit rate_limit_;
  struct KeeperFacts {
    pid_t pid = 0;
    uint64_t restarts = 0;
    int64_t last_restart_ns = 0;
    std::map<std::string, int> held;  // once it is gone: what it held
  };
  Synchronized<KeeperFacts> keeper_;
  std::atomic<Resend> resend_ = Resend::unknown;
  std::atomic<int64_t> names_changed_ns_;
  std::atomic<unsigned> flushes_here_ = 0;
  std::atomic<uint64_t> lost_writes_ = 0;
  Deferred deferred_;  // its threads use what is above
  Parking parking_;    // likewise
  SpaceMonitor space_monitor_;
  const std::unique_ptr<CheckJob> check_job_;
};

/// Nanoseconds since the epoch.
int64_t now_ns();

}  // namespace cowfs
