#pragma once

#include <spdlog/logger.h>

#include <functional>
#include <memory>
#include <string>

namespace cowfs {

/// A logger, and how to make it open its file again after a rotation (does nothing without a file).
struct Log {
  std::shared_ptr<spdlog::logger> logger;
  std::function<void()> reopen;
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
