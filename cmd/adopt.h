#pragma once

#include <string>

#include "store/host_fs.h"

namespace cowfs {

/// Brings a new keeper, in the background, and with it a new server, to a mount whose keeper was
/// killed; returns when that serves, in the caller. If the program that runs is no server for it,
/// the one that ran goes on, which is an Error too. Throws Error with nothing changed where it
/// cannot be done. Returns the exit status for the process that it returns in: also in the keeper,
/// when the mount has ended. `point` is what the server calls the mount point.
int adopt(const MountEntry& mount, const std::string& point);

}  // namespace cowfs
