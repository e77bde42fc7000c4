#pragma once

#include <nlohmann/json_fwd.hpp>

#include "fs/server.h"

namespace cowfs {

/// What a server is told, but for its log, as it is handed from the command to the keeper's servers
/// and from an old program to a new one.
nlohmann::json to_json(const ServerConfig& config);
/// Throws Error EPROTO for what this program does not understand.
ServerConfig server_config_from_json(const nlohmann::json& json);

}  // namespace cowfs
