#pragma once

#include <nlohmann/json_fwd.hpp>

namespace cowfs {

/// What `cowfs mount` leaves with the keeper for itself and its servers: an object with "log" (see
/// cmd/log_target.h) and "server" (see fs/server_config.h). `fd` is the file of memory that it
/// stands in. Throws Error, EPROTO if it is no object.
nlohmann::json read_kept_config(int fd);

}  // namespace cowfs
