#pragma once

#include <sys/types.h>

#include <string>

#include "fs/keeper_legacy.h"

namespace cowfs {

/// The server of a mount whose keeper was killed, and by it what a keeper holds.
///
/// The server has all of that too, so a new keeper takes copies of its descriptors
/// (pidfd_getfd(2)), ends it, which is safe at any moment, and starts another one, which takes over
/// as from a server that died. While it lives nothing of it is touched.
struct Orphan {
  pid_t pid;
  KeeperLegacy legacy;
};

/// Asks the server of the mount at `mount_point` (as the mount table has it) for the descriptors
/// and copies them. Throws Error: EBUSY if it has a keeper; EPERM for who may not, that is all but
/// root and the user who mounted; ENOTSUP if no server can follow on this kernel; EPROTO if what is
/// copied is not what it should be.
Orphan find_orphan(const std::string& mount_point);

/// Becomes the user that the process runs as, with his groups. Throws Error.
void become_user_of(pid_t process);

/// SIGKILL; returns when the process that `pidfd` stands for has ended.
void end_process(int pidfd);

}  // namespace cowfs
