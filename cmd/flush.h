#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "store/host_fs.h"

namespace cowfs {

/// What to do where writes wait for space, as `facts` (see mount_facts) say: "make room".
std::string way_to_space(const MountEntry& mount, const nlohmann::json& facts);

/// EBUSY if writes wait for space on the mount, as `facts` (see mount_facts) say: a flush would
/// wait with them.
void require_none_waits(const MountEntry& mount, const nlohmann::json& facts);

/// Flushes every image of a mount (fsync(2)), all that can be, and returns what failed: "image
/// dom1.img: Input/output error". Shows its progress on a terminal when it takes long. Error if the
/// images cannot be listed or the server has died.
std::vector<std::string> flush_images(const MountEntry& mount);

/// "A; B; C", of what failed; the first few if there are many.
std::string join_failures(const std::vector<std::string>& failures);

}  // namespace cowfs
