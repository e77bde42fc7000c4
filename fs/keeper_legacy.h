#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

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

  /// Of a keeper that became another program, and is the same process still.
  struct Process {
    std::string mount_point;
    bool foreground = false;
    pid_t server = 0;  ///< its child; 0: none
    int socket = -1;   ///< to that
    bool given_up = false;
    uint32_t asked = 0;   ///< as in KeeperState
    int state = -1;       ///< that memory's descriptor
    int claim = -1;       ///< see claim_mount
    std::string failure;  ///< why the program that it was to become is none; empty: it is one
    std::vector<int> spent = {};  ///< descriptors to be closed once it goes on
  };
  std::optional<Process> process;
};

}  // namespace cowfs
