#include "cmd/log_target.h"

#include "fs/byte_json.h"

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
  return {{"kind", target.kind}, {"path", bytes_to_json(target.path)}, {"level", target.level}};
}

LogTarget log_target_from_json(const nlohmann::json& json) {
  return {.kind = json.at("kind").get<LogTarget::Kind>(),
          .path = bytes_from_json(json.at("path")),
          .level = json.at("level").get<std::string>()};
}

}  // namespace cowfs
