#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cowfs {

/// The host file system below a path.
struct HostFileSystem {
  std::string type;  ///< as in /proc/self/mountinfo, "fuse.sshfs" say
  bool in_memory;    ///< tmpfs, ramfs: gone with the power
  bool read_only;
};

/// Throws if `path` does not exist.
HostFileSystem host_file_system(const std::string& path);

/// Whether file systems of this type keep their data on another machine, where locks and SQLite's
/// write-ahead log cannot be trusted (I9).
bool is_network_type(std::string_view type);

/// Whether a change of a page that is mapped into memory may take space of the file system that
/// holds `directory`; where there is none, who makes it is ended with SIGBUS. It is so where what
/// is written over goes to another place, and where blocks are smaller than pages: then SQLite's
/// shared memory (catalog.db-shm), of which it writes a byte of each page, has holes within pages.
/// Throws Error.
bool mapped_change_takes_space(const std::string& directory);

struct Space {
  uint64_t total;      ///< bytes
  uint64_t free;       ///< bytes that root can use
  uint64_t available;  ///< bytes that everybody can use
};

/// Of the file system that `path` lies on.
Space space_at(const std::string& path);

/// One line of /proc/self/mountinfo (proc(5)), unescaped.
struct MountEntry {
  uint64_t device;  ///< st_dev of what is mounted
  std::string point;
  std::string options;  ///< per mount
  std::string type;
  std::string source;
  std::string file_system_options;  ///< of what is mounted, "rw,user_id=0" say
};

/// A line as the kernel writes it; of another what can be made of it.
MountEntry parse_mount_entry(const std::string& line);

/// The topmost mount at exactly `point` (absolute, resolved), if there is one.
std::optional<MountEntry> mount_at(const std::string& point);

/// All mounts, in the order of the kernel's list.
std::vector<MountEntry> mounts();

}  // namespace cowfs
