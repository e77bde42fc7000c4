#include "fs/users.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>
#include <vector>

#include "store/error.h"
#include "store/file.h"
#include "store/host_fs.h"

namespace cowfs {
namespace {

struct FileIdentity {
  uint64_t device;
  uint64_t inode;
};

/// Of what `path`, a link of /proc say, leads to. From the kernel's memory: the server of a FUSE
/// file system, which may be dead or be the very process that asks, is not asked for it.
std::optional<FileIdentity> identify(const std::string& path) {
  struct statx status {};
  if (::statx(AT_FDCWD, path.c_str(), AT_STATX_DONT_SYNC, STATX_INO, &status) != 0) {
    return std::nullopt;
  }
  return FileIdentity{.device = makedev(status.stx_dev_major, status.stx_dev_minor),
                      .inode = status.stx_ino};
}

std::string link_target(const std::string& path) {
  std::array<char, 4096> buffer{};
  const ssize_t length = ::readlink(path.c_str(), buffer.data(), buffer.size());
  return {buffer.data(), length > 0 ? static_cast<size_t>(length) : 0};
}

/// What stands in a file of one value, which may hold newlines; empty if it cannot be read.
std::string value_in(const std::string& path) {
  std::ifstream file(path);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

/// Names in a directory; none if it cannot be read.
std::vector<std::string> entries(const std::string& directory) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(directory.c_str()), ::closedir);
  std::vector<std::string> names;
  if (dir == nullptr) return names;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  return names;
}

void add_process(Users& found, pid_t pid, uint64_t inode, const std::string& path) {
  const auto [first, last] = found.equal_range(inode);
  if (first != last) return;
  const std::string command = value_in("/proc/" + std::to_string(pid) + "/comm");
  found.emplace(
      inode,
      User{
          .kind = User::Kind::process, .pid = pid, .command = command, .device = "", .path = path});
}

Users files_of_process(uint64_t device, pid_t pid) {
  Users found;
  const auto add_link = [&](const std::string& link) {
    const std::optional<FileIdentity> file = identify(link);
    if (file && file->device == device) add_process(found, pid, file->inode, link_target(link));
  };
  const std::string directory = "/proc/" + std::to_string(pid) + "/";
  for (const char* link : {"cwd", "root", "exe"}) add_link(directory + link);
  const std::string descriptors = directory + "fd/";
  for (const std::string& fd : entries(descriptors)) add_link(descriptors + fd);
  std::ifstream file(directory + "maps");
  for (std::string line; std::getline(file, line);) {
    const std::optional<MappedFile> mapped = parse_mapping(line);
    if (mapped && mapped->device == device) add_process(found, pid, mapped->inode, mapped->path);
  }
  return found;
}

std::optional<FileIdentity> ask_loop_device(const std::string& device) {
  try {
    const File file(device, O_RDONLY | O_NONBLOCK);
    loop_info64 info{};
    if (::ioctl(file.fd(), LOOP_GET_STATUS64, &info) != 0) return std::nullopt;
    // The kernel's own encoding of a device number, "huge", is that of 64 bits here.
    return FileIdentity{.device = info.lo_device, .inode = info.lo_inode};
  } catch (const Error&) {
    return std::nullopt;
  }
}

/// For a mount that answers nobody: the file lies in it, whichever it is.
std::optional<FileIdentity> by_place(const std::string& file) {
  const std::string directory = std::filesystem::path(file).parent_path();
  const std::optional<MountEntry> mount = mount_at(directory);
  if (!mount) return std::nullopt;
  return FileIdentity{.device = mount->device, .inode = 0};
}

/// sysfs names the backing file to everybody. The device itself is asked only where the name leads
/// nowhere, since a device that is open cannot be detached at once.
Users file_of_loop_device(uint64_t device, const std::string& name) {
  const std::string file = value_in("/sys/block/" + name + "/loop/backing_file");
  if (file.empty()) return {};
  const std::string path = "/dev/" + name;
  std::optional<FileIdentity> backing;
  if (!file.ends_with(" (deleted)")) backing = identify(file);
  if (!backing) backing = ask_loop_device(path);
  if (!backing) backing = by_place(file);
  if (!backing || backing->device != device) return {};
  return {{backing->inode,
           User{.kind = User::Kind::loop, .pid = 0, .command = "", .device = path, .path = file}}};
}

/// What `look` finds, or nothing if it takes longer than anybody wants to wait: the kernel lets who
/// looks at a process wait while that is in execve(2), and execve(2) waits for ever where it closes
/// an image whose writes wait for space. The thread that looks is left to itself then.
Users look_with_patience(std::function<Users()> look) {
  constexpr std::chrono::milliseconds patience{500};
  std::packaged_task<Users()> task(std::move(look));
  std::future<Users> found = task.get_future();
  std::thread(std::move(task)).detach();
  if (found.wait_for(patience) != std::future_status::ready) return {};
  return found.get();
}

}  // namespace

std::optional<MappedFile> parse_mapping(const std::string& line) {
  // 7f00-7f01 rw-s 00000000 00:35 42      /mnt/vms/dom1.img
  std::istringstream words(line);
  std::string ignored;
  unsigned major_number = 0;
  unsigned minor_number = 0;
  char colon = 0;
  MappedFile mapped{};
  words >> ignored >> ignored >> ignored >> std::hex >> major_number >> colon >> minor_number >>
      std::dec >> mapped.inode;
  if (!words) return std::nullopt;
  mapped.device = makedev(major_number, minor_number);
  std::getline(words >> std::ws, mapped.path);
  return mapped;
}

Users users_of_mount(uint64_t device) {
  Users users;
  for (const std::string& name : entries("/proc")) {
    pid_t pid = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (error != std::errc() || *end != '\0' || pid == ::getpid()) continue;
    users.merge(look_with_patience([device, pid] { return files_of_process(device, pid); }));
  }
  for (const std::string& name : entries("/sys/block")) {
    if (!name.starts_with("loop")) continue;
    users.merge(look_with_patience([device, name] { return file_of_loop_device(device, name); }));
  }
  return users;
}

std::string describe(const User& user) {
  if (user.kind == User::Kind::loop) return user.device;
  return "process " + std::to_string(user.pid) + " (" + user.command + ")";
}

}  // namespace cowfs
