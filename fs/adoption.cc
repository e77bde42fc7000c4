#include "fs/adoption.h"

#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "fs/control.h"
#include "fs/server_process.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr unsigned kFuseMajor = 10;
constexpr unsigned kFuseMinor = 229;

bool is_fuse_device(const struct stat& status, const std::string& /*path*/) {
  return S_ISCHR(status.st_mode) && status.st_rdev == makedev(kFuseMajor, kFuseMinor);
}
bool is_live_memory(const struct stat& status, const std::string& path) {
  return S_ISREG(status.st_mode) && path.starts_with("/memfd:cowfs-live");
}
bool is_config(const struct stat& status, const std::string& path) {
  return S_ISREG(status.st_mode) && path.starts_with("/memfd:cowfs-config");
}
bool is_directory(const struct stat& status, const std::string& /*path*/) {
  return S_ISDIR(status.st_mode);
}
bool is_file(const struct stat& status, const std::string& /*path*/) {
  return S_ISREG(status.st_mode);
}

struct Kind {
  const char* name;
  bool (*is)(const struct stat& status, const std::string& path);
};
/// What a keeper holds, all of it.
constexpr std::array kKinds{Kind{"connection", is_fuse_device}, Kind{"live", is_live_memory},
                            Kind{"config", is_config}, Kind{"lock-directory", is_directory},
                            Kind{"lock-file", is_file}};

bool is_of_kind(int fd, const Kind& kind) {
  struct stat status {};
  std::error_code error;
  const std::string path =
      std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), error);
  return ::fstat(fd, &status) == 0 && kind.is(status, path);
}

nlohmann::json ask_for_descriptors(const std::string& mount_point) {
  try {
    return ask_server(mount_point, {{"ask", "descriptors"}});
  } catch (const Error& error) {
    if (error.code() == EBUSY) {
      throw Error::with_message(EBUSY, mount_point + ": its server has a keeper");
    }
    if (error.code() != EPERM && error.code() != EACCES) throw;
    throw Error::with_message(
        EPERM, mount_point + ": only root and the user that mounted it may restart it");
  }
}

int copy_descriptor(int process, int number, const std::string& what) {
  const auto fd = static_cast<int>(::syscall(SYS_pidfd_getfd, process, number, 0));
  if (fd >= 0) return fd;
  const char* hint = errno == EPERM ? "; root may" : "";
  throw Error::with_message(
      errno, "copy the descriptor '" + what + "' of the server: " + error_text(errno) + hint);
}

std::vector<unsigned> numbers_after(const std::string& key, const std::string& file) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(key)) continue;
    std::istringstream words(line.substr(key.size()));
    std::vector<unsigned> numbers;
    for (unsigned number = 0; words >> number;) numbers.push_back(number);
    return numbers;
  }
  return {};
}

}  // namespace

Orphan find_orphan(const std::string& mount_point) {
  const pid_t pid = ask_for_descriptors(mount_point).at("server_pid");
  Orphan orphan{.pid = pid, .legacy = {}};
  KeeperLegacy& legacy = orphan.legacy;
  legacy.orphan = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (legacy.orphan < 0) throw Error{errno, mount_point + ": its server"};
  // Once more: who answers now was there when the pidfd was opened, so that it is his.
  const nlohmann::json answer = ask_for_descriptors(mount_point);
  if (answer.at("server_pid") != pid) {
    throw Error::with_message(ESRCH, mount_point + ": its server ended meanwhile");
  }
  for (const Kind& kind : kKinds) {
    const int fd =
        copy_descriptor(legacy.orphan, answer.at("descriptors").at(kind.name), kind.name);
    legacy.held[kind.name] = fd;
    if (!is_of_kind(fd, kind)) {
      throw Error::with_message(
          EPROTO, mount_point + ": what its server has as '" + kind.name + "' is something else");
    }
  }
  legacy.program = std::make_shared<const Program>(Program::own_path(), kServerSocket + 1,
                                                   "/proc/" + std::to_string(pid) + "/exe");
  legacy.restarts = answer.at("restarts");
  legacy.last_restart_ns = answer.at("last_restart_ns");
  return orphan;
}

void become_user_of(pid_t process) {
  const std::string file = "/proc/" + std::to_string(process) + "/status";
  const std::vector<unsigned> users = numbers_after("Uid:", file);
  const std::vector<unsigned> groups = numbers_after("Gid:", file);
  if (users.empty() || groups.empty()) throw Error(ESRCH, "look at the server");
  const uid_t user = users.front();
  if (user == ::geteuid()) return;
  const gid_t group = groups.front();
  const std::vector<gid_t> others = numbers_after("Groups:", file);
  if (::setgroups(others.size(), others.data()) != 0 || ::setresgid(group, group, group) != 0 ||
      ::setresuid(user, user, user) != 0) {
    throw Error{errno, "become user " + std::to_string(user) + ", who mounted it"};
  }
  // He is to find his keeper, and may look at it.
  ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

void end_process(int pidfd) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0) != 0 && errno != ESRCH) {
    throw Error{errno, "end the server"};
  }
  pollfd ended{.fd = pidfd, .events = POLLIN, .revents = 0};
  while (::poll(&ended, 1, -1) < 0 && errno == EINTR) {
  }
}

}  // namespace cowfs
