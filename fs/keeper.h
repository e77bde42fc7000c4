#pragma once

#include <spdlog/fwd.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fs/keeper_legacy.h"

namespace cowfs {

/// What the keeper of a mount is told.
struct KeeperConfig {
  std::string mount_point;             ///< absolute, resolved
  std::vector<std::string> arguments;  ///< of the program, to make it the server
  /// Tests: runs in the child with the server's socket in place of the program.
  std::function<int(int socket)> instead_of_program;
  bool foreground = false;   ///< the servers keep the standard streams
  std::string server;        ///< handed to each server as it is: its configuration
  std::string store;         ///< its directory, and
  std::string on_watermark;  ///< a command for sh(1), or nothing; see WatermarkCommand
  bool tune = true;          ///< set the bdi where root may, its dirty limits where that is safe
  bool tune_always = false;  ///< the dirty limits also where PR_SET_IO_FLUSHER was refused
  std::shared_ptr<spdlog::logger> log;
  /// At SIGHUP: opens the log's file again, and returns its descriptor or -1 if there is none.
  std::function<int()> reopen_log;
};

/// The process that a mount hangs on. Starts this program's file again as the server, mounts when
/// that is ready to serve, and holds everything that the next server needs: the connection, the
/// memory of the live maps, the store's lock. A server that dies is replaced, and its clients
/// notice a pause. One that crashes five times in ten seconds is not: requests fail with EIO then,
/// until the file system is unmounted or a signal asks for another try. (SIGKILL is no crash.) It
/// parses no request and does no I/O on the store, so that it has no reason to die itself.
///
/// SIGTERM and SIGINT unmount if nothing uses the mount, and log who does otherwise; SIGHUP reopens
/// the log; SIGUSR1 replaces the server by the program that is at its path now, or by the old one
/// if that does not become ready; SIGUSR2 replaces the keeper's own program in the same way, if the
/// new one says that it can go on with what the old one has, and leaves the server alone.
///
/// Returns the exit status when the mount has ended. Throws Error before `ready` was called:
/// nothing is mounted then. The calling thread must be the only one; it stays the only one.
///
/// With a `legacy` there is a mount already. It throws only before it has done anything about that,
/// and `ready` is called also when it has given up.
int keep(const KeeperConfig& config, const std::function<void()>& ready,
         const KeeperLegacy& legacy = {});

}  // namespace cowfs
