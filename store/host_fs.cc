#include "store/host_fs.h"

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <sstream>

#include "store/error.h"

namespace cowfs {
namespace {

/// Undoes the \ooo escapes of mountinfo.
std::string unescape(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const std::string_view digits = std::string_view(text).substr(i + 1, 3);
    unsigned value = 0;
    const char* end = digits.data() + digits.size();
    if (text[i] == '\\' && digits.size() == 3 &&
        std::from_chars(digits.data(), end, value, 8).ptr == end) {
      plain += static_cast<char>(value);
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

}  // namespace

MountEntry parse_mount_entry(const std::string& line) {
  // 36 35 98:0 /root /point options optional... - type source super-options
  std::istringstream words(line);
  std::string id;
  std::string parent;
  std::string device;
  std::string root;
  MountEntry entry{};
  words >> id >> parent >> device >> root >> entry.point >> entry.options;
  std::string word;
  while (words >> word && word != "-") {
  }
  words >> entry.type >> entry.source >> entry.file_system_options;
  unsigned major = 0;
  unsigned minor = 0;
  char colon = 0;
  std::istringstream(device) >> major >> colon >> minor;
  entry.device = makedev(major, minor);
  entry.point = unescape(entry.point);
  entry.source = unescape(entry.source);
  return entry;
}

std::vector<MountEntry> mounts() {
  std::vector<MountEntry> entries;
  std::ifstream file("/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) entries.push_back(parse_mount_entry(line));
  return entries;
}

std::optional<MountEntry> mount_at(const std::string& point) {
  std::optional<MountEntry> found;
  for (MountEntry& entry : mounts()) {
    if (entry.point == point) found = std::move(entry);
  }
  return found;
}

HostFileSystem host_file_system(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw Error{errno, path};
  struct statvfs space {};
  if (::statvfs(path.c_str(), &space) != 0) throw Error{errno, path};
  HostFileSystem host{.type = "", .in_memory = false, .read_only = (space.f_flag & ST_RDONLY) != 0};
  char* resolved = ::realpath(path.c_str(), nullptr);
  const std::string real = resolved != nullptr ? resolved : path;
  ::free(resolved);
  // The device number tells, but for btrfs, whose subvolumes have numbers of their own: there the
  // longest mount point above the path does.
  size_t longest = 0;
  std::string by_path;
  for (const MountEntry& entry : mounts()) {
    if (entry.device == status.st_dev) host.type = entry.type;
    const bool above =
        entry.point == "/" || real == entry.point || real.starts_with(entry.point + "/");
    if (above && entry.point.size() >= longest) {
      longest = entry.point.size();
      by_path = entry.type;
    }
  }
  if (host.type.empty()) host.type = by_path;
  host.in_memory = host.type == "tmpfs" || host.type == "ramfs";
  return host;
}

bool is_network_type(std::string_view type) {
  static constexpr std::array<std::string_view, 25> kTypes{
      "nfs",          "nfs4",         "cifs",
      "smb3",         "smbfs",        "ceph",
      "afs",          "9p",           "coda",
      "lustre",       "ocfs2",        "gfs2",
      "gpfs",         "beegfs",       "orangefs",
      "ncpfs",        "fuse.sshfs",   "fuse.glusterfs",
      "fuse.s3fs",    "fuse.rclone",  "fuse.ceph-fuse",
      "fuse.juicefs", "fuse.gcsfuse", "fuse.curlftpfs",
      "fuse.davfs2"};
  return std::find(kTypes.begin(), kTypes.end(), type) != kTypes.end();
}

bool mapped_change_takes_space(const std::string& directory) {
  const std::string type = host_file_system(directory).type;
  if (type == "btrfs" || type == "bcachefs" || type == "zfs") return true;
  struct statvfs host {};
  if (::statvfs(directory.c_str(), &host) != 0) throw Error{errno, directory};
  return host.f_bsize < static_cast<unsigned long>(::sysconf(_SC_PAGESIZE));
}

Space space_at(const std::string& path) {
  struct statvfs space {};
  if (::statvfs(path.c_str(), &space) != 0) throw Error{errno, path};
  return {.total = uint64_t{space.f_blocks} * space.f_frsize,
          .free = uint64_t{space.f_bfree} * space.f_frsize,
          .available = uint64_t{space.f_bavail} * space.f_frsize};
}

}  // namespace cowfs
