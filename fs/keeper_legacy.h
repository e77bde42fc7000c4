#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "fs/program.h"

namespace cowfs {

/// What a keeper goes on with that is not the first of its mount. Nothing, by default. Descriptors
/// in it are to be owned by the keeper.
struct KeeperLegacy {
  std::map<std::string, int> held;         ///< for the next server, by name
  std::shared_ptr<const Program> program;  ///< which a server runs or ran; none: no legacy
  uint64_t restarts = 0;
  int64_t last_restart_ns = 0;  ///< 0: never
  int orphan = -1;  ///< a server without a keeper, as a pidfd: to be ended, and another started
};

}  // namespace cowfs
