#pragma once

#include <spdlog/fwd.h>
#include <sys/types.h>

#include <string>
#include <vector>

namespace cowfs {

/// A watermark that the store's file system has reached.
struct WatermarkNews {
  unsigned mark;  ///< percent
  unsigned used;  ///< percent

  /// As a server tells its keeper.
  [[nodiscard]] std::string text() const;
  /// Of a text that makes no sense, zeros.
  static WatermarkNews from(const std::string& text);
};

/// The command of `-o on_watermark=`. The keeper runs it, since a server may start no program; of
/// the server it takes two numbers and nothing else. Not thread-safe.
class WatermarkCommand {
 public:
  struct Config {
    std::string command;  ///< for sh(1); gets COWFS_MOUNT, COWFS_STORE, COWFS_WATERMARK and
                          ///< COWFS_USED (percent). Empty: none
    std::string mount;
    std::string store;
  };

  WatermarkCommand(Config config, spdlog::logger& log);

  /// Starts it, in the background and out of reach of this process's signals. That it cannot be is
  /// logged.
  void run(const WatermarkNews& news);
  /// For each child of this process that has ended, with the status of waitpid(2): logs that the
  /// command failed, if it was that.
  void note_ended(pid_t pid, int status);

 private:
  const Config config_;
  spdlog::logger& log_;
  std::vector<pid_t> running_;
};

}  // namespace cowfs
