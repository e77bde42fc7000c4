#pragma once

#include <signal.h>
#include <sys/types.h>

#include "fs/keeper.h"
#include "fs/program.h"

namespace cowfs {

/// The number of the socket to its keeper in a server.
constexpr int kServerSocket = 3;

/// A server and the keeper's end of the socket to it, which is the caller's.
struct ServerProcess {
  pid_t pid;
  int socket;
};

/// Starts `program` as a server, in a session of its own, with `signals` blocked. Throws Error if
/// there can be no process; a program that cannot be run ends with exit status 127.
ServerProcess start_server_process(const KeeperConfig& config, const Program& program,
                                   const sigset_t& signals);

}  // namespace cowfs
