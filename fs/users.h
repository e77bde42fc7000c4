#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace cowfs {

/// Somebody who has a file of a mount in use.
struct User {
  enum class Kind { process, loop };
  Kind kind = Kind::process;
  pid_t pid = 0;        ///< of a process
  std::string command;  ///< of a process, its short name
  std::string device;   ///< of a loop device, "/dev/loop0"
  std::string path;     ///< what it uses, as the kernel shows it
};

/// By the inode that is used: an image's, or the mount's root's.
using Users = std::multimap<uint64_t, User>;

/// Who uses the mount whose files have `st_dev` = `device`: processes with an open file, a mapping,
/// a working or root directory or a program in it, and loop devices. One scan of the host, once for
/// each user and inode. The calling process is left out; so is what it may not look at, which for
/// who is not root are the processes of others, and what the kernel does not let anybody look at
/// within half a second: a process that hangs in execve(2). Asks the mount's server nothing but
/// what a loop device over an unlinked image asks. Thread-safe.
Users users_of_mount(uint64_t device);

/// A file that is mapped, from a line of /proc/PID/maps (proc(5)).
struct MappedFile {
  uint64_t device;
  uint64_t inode;
  std::string path;  ///< as the kernel shows it
};
/// None if the line does not have the form of one.
std::optional<MappedFile> parse_mapping(const std::string& line);

/// "process 123 (qemu)" or "/dev/loop0", fit for a terminal.
std::string describe(const User& user);

}  // namespace cowfs
