#pragma once

#include <spdlog/fwd.h>
#include <sys/types.h>

#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fs/watermarks.h"

namespace cowfs {

/// Looks at the space of a store every few seconds: logs each watermark and runs a command for it.
/// Thread-safe.
class SpaceMonitor {
 public:
  struct Config {
    std::string store;  ///< the directory
    std::string mount;  ///< for the command
    std::vector<unsigned> marks;
    /// For sh(1); gets COWFS_MOUNT, COWFS_STORE, COWFS_WATERMARK and COWFS_USED (percent). Empty:
    /// none.
    std::string command;
  };

  SpaceMonitor(Config config, spdlog::logger& log);
  SpaceMonitor(const SpaceMonitor&) = delete;
  SpaceMonitor& operator=(const SpaceMonitor&) = delete;
  ~SpaceMonitor();

  [[nodiscard]] std::optional<unsigned> reached();

 private:
  void run();
  void look();
  void run_command(unsigned mark, unsigned used);
  void collect_commands();

  const Config config_;
  spdlog::logger& log_;
  std::mutex mutex_;  // guards marks_ and stopping_
  std::condition_variable stop_;
  Watermarks marks_;
  bool stopping_ = false;
  std::vector<pid_t> commands_;  // of the thread
  std::thread thread_;           // last: starts when all else is there
};

}  // namespace cowfs
