#include "cmd/log_target.h"

#include <nlohmann/json.hpp>
#include <vector>

namespace cowfs {

Log open_log(const LogTarget& target) {
  const spdlog::level::level_enum level = parse_log_level(target.level);
  switch (target.kind) {
    case LogTarget::Kind::file:
      return log_to_file(target.path, level);
    case LogTarget::Kind::standard_error:
      return log_to_stderr(level);
    case LogTarget::Kind::syslog:
      break;
  }
  return log_to_syslog(level);
}

nlohmann::json to_json(const LogTarget& target) {
  // A path may hold bytes that are no UTF-8.
  return {{"kind", target.kind},
          {"path", std::vector<unsigned char>(target.path.begin(), target.path.end())},
          {"level", target.level}};
}

LogTarget log_target_from_json(const nlohmann::json& json) {
  const auto path = json.at("path").get<std::vector<unsigned char>>();
  return {.kind = json.at("kind").get<LogTarget::Kind>(),
          .path = {path.begin(), path.end()},
          .level = json.at("level").get<std::string>()};
}

}  // namespace cowfs
