#pragma once

#include <spdlog/logger.h>

#include <functional>
#include <memory>
#include <string>

namespace cowfs {

/// A logger, and what is done with its file after a rotation.
struct Log {
  std::shared_ptr<spdlog::logger> logger;
  /// Opens the file again, and returns its descriptor, which stays the log's. -1: it has none.
  std::function<int()> reopen;
  /// Goes on with a copy of a descriptor that somebody else has opened.
  std::function<void(int fd)> use;
};

/// trace, debug, info, warn or error; UsageError for others.
spdlog::level::level_enum parse_log_level(const std::string& name);

/// To standard error, with time and level.
Log log_to_stderr(spdlog::level::level_enum level);
/// To syslog as "cowfs[PID]", facility daemon.
Log log_to_syslog(spdlog::level::level_enum level);
/// Appends to the file, which is made with mode 0640. Error if it cannot be opened.
Log log_to_file(const std::string& path, spdlog::level::level_enum level);

/// For commands that open a store: warnings, on standard error, as the errors look.
std::shared_ptr<spdlog::logger> command_logger(const std::string& command);

}  // namespace cowfs
