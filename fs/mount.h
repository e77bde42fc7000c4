#pragma once

#include <string>
#include <vector>

namespace cowfs {

/// Mounts a FUSE file system on `mount_point` and returns the connection's descriptor, on which
/// nobody has read yet. `options` are libfuse's and mount(2)'s, "ro" say; who may not mount by
/// himself does it through fusermount3(1). Throws Error with what the kernel or fusermount3 said.
/// The mount ends with the last copy of the descriptor, or by umount(2).
int mount_fuse(const std::string& mount_point, const std::vector<std::string>& options);

/// umount2(2) with these flags besides UMOUNT_NOFOLLOW, or, for who may not unmount by himself,
/// through fusermount3(1). 0 or an errno value.
int unmount_mount_point(const std::string& mount_point, int flags);

/// An option for libfuse with commas and backslashes of `value` escaped: "fsname=/srv/a\,b".
std::string fuse_option(const std::string& name, const std::string& value);

}  // namespace cowfs
