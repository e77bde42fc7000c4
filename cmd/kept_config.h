#pragma once

#include <nlohmann/json_fwd.hpp>

#include "cmd/logging.h"
#include "fs/keeper.h"
#include "fs/server_config.h"

namespace cowfs {

/// What `cowfs mount` leaves with the keeper for itself and its servers: an object with "log" (see
/// cmd/log_target.h) and "server" (see fs/server_config.h). `fd` is the file of memory that it
/// stands in. Throws Error, EPROTO if it is no object.
nlohmann::json read_kept_config(int fd);

/// Of a keeper that follows another: of the mount that `server` describes, which is tuned already.
/// The caller sets `foreground`, and `server` unless the configuration is held.
KeeperConfig following_keeper_config(const ServerConfig& server, const Log& log);

}  // namespace cowfs
