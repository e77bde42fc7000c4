#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cmd/logging.h"

namespace cowfs {

/// Where a mount's log goes: the same for its keeper and its servers.
struct LogTarget {
  enum class Kind { syslog, standard_error, file };
  Kind kind = Kind::syslog;
  std::string path;  ///< of a file
  std::string level = "info";
};

/// UsageError for a level that is none.
Log open_log(const LogTarget& target);

nlohmann::json to_json(const LogTarget& target);
/// Throws nlohmann::json::exception.
LogTarget log_target_from_json(const nlohmann::json& json);

}  // namespace cowfs
