#pragma once

#include <string>

namespace cowfs {

/// Takes away what cowfs mounts whose keeper and server are gone have left at `directory`
/// (absolute, resolved), and says so for `command`. Does nothing where a server lives. Error if a
/// dead mount is another file system's, or stays.
void clean_up_stale_mounts(const std::string& directory, const std::string& command);

}  // namespace cowfs
