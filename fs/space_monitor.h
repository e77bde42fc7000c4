#pragma once

#include <spdlog/fwd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fs/watermark_command.h"
#include "fs/watermarks.h"
#include "store/descriptor.h"
#include "store/host_fs.h"

namespace cowfs {

/// Looks at the space of a store every few seconds, logs each watermark that it reaches and tells
/// of it. Thread-safe.
class SpaceMonitor {
 public:
  struct Config {
    std::string store;  ///< the directory
    std::string what;   ///< whose space it is, for the log: "file system"
    std::vector<unsigned> marks;
    std::function<Space()> space;
  };

  /// `told` is where the highest mark stands that was told of, percent or 0: by a monitor before
  /// this one, by which it is not told again, and for one after it.
  SpaceMonitor(Config config, std::atomic<uint32_t>& told, spdlog::logger& log);
  SpaceMonitor(const SpaceMonitor&) = delete;
  SpaceMonitor& operator=(const SpaceMonitor&) = delete;
  ~SpaceMonitor();

  [[nodiscard]] std::optional<unsigned> reached();

  /// Readable when there is news to be taken.
  [[nodiscard]] int news_fd() const { return news_fd_.fd(); }
  /// What was reached since the last call, in that order.
  [[nodiscard]] std::vector<WatermarkNews> take_news();

 private:
  void run();
  void look();

  const Config config_;
  std::atomic<uint32_t>& told_;
  spdlog::logger& log_;
  const Descriptor news_fd_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable stop_;
  Watermarks marks_;
  std::vector<WatermarkNews> news_;
  bool stopping_ = false;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace cowfs
