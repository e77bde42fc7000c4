#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <thread>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/facts.h"
#include "cmd/flush.h"
#include "cmd/target.h"
#include "fs/control.h"
#include "fs/keeper_state.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr HelpTexts kUmountHelp{
    .command = "umount",
    .usage = "[OPTION]... DIR",
    .what =
        "Makes everything durable and takes down the mount at DIR. Returns when the server has "
        "ended.\n"
        "If the mount is in use it stays, and its users are named. Cleans up after a server that\n"
        "has died.",
    .examples = "  cowfs umount /mnt/vms\n"};

/// A process, not a number that may be another's tomorrow.
class ProcessHandle {
 public:
  explicit ProcessHandle(pid_t pid) : fd_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {
    if (fd_ < 0 && errno != ESRCH) throw Error{errno, "watch process " + std::to_string(pid)};
  }
  ProcessHandle(const ProcessHandle&) = delete;
  ProcessHandle& operator=(const ProcessHandle&) = delete;
  ~ProcessHandle() {
    if (fd_ >= 0) ::close(fd_);
  }

  /// Whether it ended within that time; -1: however long it takes.
  [[nodiscard]] bool wait(int milliseconds) const {
    if (fd_ < 0) return true;
    pollfd ended{.fd = fd_, .events = POLLIN, .revents = 0};
    int count = 0;
    while ((count = ::poll(&ended, 1, milliseconds)) < 0 && errno == EINTR) {
    }
    return count > 0;
  }

 private:
  int fd_;
};

/// Why it was not unmounted: an errno value and, of fusermount3, its words.
struct Refusal {
  int code = 0;
  std::string words;
};

/// For who may not unmount by himself: fusermount3(1), which may.
Refusal run_fusermount(const std::string& directory, bool lazy) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return {errno, ""};
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], STDERR_FILENO);
    ::execlp("fusermount3", "fusermount3", lazy ? "-uz" : "-u", "--", directory.c_str(), nullptr);
    ::_exit(127);
  }
  ::close(ends[1]);
  std::string words;
  std::array<char, 512> buffer{};
  for (ssize_t count = 0; (count = ::read(ends[0], buffer.data(), buffer.size())) > 0;) {
    words.append(buffer.data(), static_cast<size_t>(count));
  }
  ::close(ends[0]);
  int status = 0;
  while (child > 0 && ::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  if (child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    return {EPERM, "only root may unmount it, and there is no fusermount3"};
  }
  while (words.ends_with('\n')) words.pop_back();
  // It says so in words only.
  return {words.find(error_text(EBUSY)) != std::string::npos ? EBUSY : EPERM, words};
}

Refusal unmount(const std::string& directory, bool lazy) {
  const int flags = UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0);
  if (::umount2(directory.c_str(), flags) == 0) return {};
  if (errno != EPERM) return {errno, ""};
  return run_fusermount(directory, lazy);
}

/// "process 12 (qemu) with dom1.img and dom2.img, /dev/loop0 with dom3.img".
std::string users_text(const MountEntry& mount) {
  std::map<std::string, std::set<std::string>> by_user;
  for (const auto& [inode, user] : users_of_mount(mount.device)) {
    const std::string name = std::filesystem::path(user.path).filename();
    by_user[describe(user)].insert(user.path == mount.point ? "the directory" : name);
  }
  std::string text;
  for (const auto& [user, names] : by_user) {
    text += (text.empty() ? "" : ", ") + user;
    const char* separator = " with ";
    for (const std::string& name : names) {
      text += separator + name;
      separator = " and ";
    }
  }
  return text;
}

[[noreturn]] void refuse_unmount(const MountEntry& mount, pid_t server, const Refusal& refusal) {
  struct stat status {};
  const bool known = ::stat(("/proc/" + std::to_string(server)).c_str(), &status) == 0;
  std::string why = refusal.words.empty() ? error_text(refusal.code) : refusal.words;
  // What fusermount3(1) says then does not help.
  if (refusal.code == EPERM && known && status.st_uid != ::geteuid()) {
    why = fmt::format("was mounted by user {}; only he and root may unmount it", status.st_uid);
  }
  throw Error::with_message(refusal.code, mount.point + ": " + why);
}

bool is_mounted(const MountEntry& mount) {
  const std::vector<MountEntry> entries = mounts();
  return std::any_of(entries.begin(), entries.end(), [&](const MountEntry& entry) {
    return entry.device == mount.device && entry.point == mount.point;
  });
}

/// A loop device that was just detached, or a process that has just ended, may hold it for a moment
/// still.
/// `besides` ends the message to who is refused.
void unmount_or_name_users(const MountEntry& mount, pid_t server, const std::string& besides) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  for (;;) {
    const Refusal refusal = unmount(mount.point, false);
    if (refusal.code == 0) return;
    // Somebody else's umount was faster.
    if (refusal.code == EINVAL && !is_mounted(mount)) return;
    if (refusal.code != EBUSY) refuse_unmount(mount, server, refusal);
    const std::string users = users_text(mount);
    if (!users.empty()) {
      throw Error::with_message(EBUSY,
                                fmt::format("{}: is in use by {}{}", mount.point, users, besides));
    }
    if (std::chrono::steady_clock::now() > deadline) {
      throw Error::with_message(EBUSY, mount.point +
                                           ": is in use by somebody who cannot be seen from here: "
                                           "another user's process, or a mount below it" +
                                           besides);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

/// What was deleted beneath its mount is still served where it is open.
void add_missing(const MountEntry& mount, const std::string& store,
                 std::vector<std::string>& failures) {
  std::error_code error;
  if (!std::filesystem::exists(store + "/catalog.db", error) && !error) {
    failures.push_back("store " + store + ": it was deleted or moved away");
    return;
  }
  nlohmann::json missing;
  try {
    missing = ask_server(mount.point, {{"ask", "missing"}});
  } catch (const Error& old) {
    if (old.code() != EINVAL) throw;
    return;  // an older server
  }
  const uint64_t count = missing.at("count");
  if (count == 0) return;
  failures.push_back(fmt::format(
      "{}{}: deleted or replaced beneath the mount; what is open can still be read: copy the "
      "images out first",
      missing.at("first").get<std::string>(),
      count > 1 ? fmt::format(" and {} more", count - 1) : ""));
}

void clean_up_dead(const MountEntry& mount) {
  const Refusal refusal = unmount(mount.point, true);
  if (refusal.code != 0) {
    throw Error::with_message(
        refusal.code, mount.point +
                          ": its server is dead, and the mount point cannot be cleaned up: " +
                          (refusal.words.empty() ? error_text(refusal.code) : refusal.words));
  }
  print_message("umount", mount.point + ": its server was dead; the mount point is cleaned up");
}

/// Whether the same file system, which is mounted at `mount`, is also mounted elsewhere (mount(8)
/// with --bind). Its server goes on then.
bool is_mounted_elsewhere(const MountEntry& mount) {
  const std::vector<MountEntry> entries = mounts();
  return std::count_if(entries.begin(), entries.end(),
                       [&](const MountEntry& entry) { return entry.device == mount.device; }) > 1;
}

void wait_for_end(const ProcessHandle& server) {
  if (server.wait(1000)) return;
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  if (terminal) fmt::print(stderr, "waiting for the server to make everything durable");
  while (!server.wait(1000)) {
    if (terminal) fmt::print(stderr, ".");
  }
  if (terminal) fmt::print(stderr, "\r\x1b[K");
}

/// Its keeper answers all with errors, and could still have another server started.
void unmount_given_up(const MountEntry& mount, const KeeperLook& look) {
  const ProcessHandle keeper(look.pid);
  const bool elsewhere = is_mounted_elsewhere(mount);
  unmount_or_name_users(
      mount, look.pid,
      "; its server crashed again and again: `cowfs restart " + mount.point + "` tries another");
  if (elsewhere) {
    print_message("umount", mount.point + ": is mounted in another place too; its keeper goes on");
    return;
  }
  wait_for_end(keeper);
  print_message("umount", mount.point +
                              ": its server had crashed again and again; what was not durable by "
                              "then is lost");
}

}  // namespace

int run_umount(const Arguments& arguments) {
  std::string directory;
  bool force = false;
  CommandLine line(kUmountHelp);
  line.argument("DIR", directory, "the mount point");
  line.flag("--force", force,
            "unmount also if an image cannot be made durable; ends what waits for space");
  if (!line.parse(arguments)) return kDone;

  const MountEntry mount = mount_of_directory(directory);
  // Not be a user of the mount ourselves.
  if (::chdir("/") != 0) throw Error{errno, "change to /"};
  std::vector<std::string> failures;
  try {
    const nlohmann::json facts = mount_facts(mount);
    const auto pid = facts.at("server_pid").get<pid_t>();
    const ProcessHandle server(pid);
    // It gives the store up last.
    const nlohmann::json keeper_pid = facts.value("keeper_pid", nlohmann::json());
    const ProcessHandle keeper(keeper_pid.is_null() ? pid : keeper_pid.get<pid_t>());
    const bool elsewhere = is_mounted_elsewhere(mount);
    bool ended_writes = false;
    if (force) {
      // First, though the mount may turn out to be in use: who looks for its users, or flushes,
      // would wait with them.
      ended_writes = facts.at("parked").get<uint64_t>() > 0;
      end_waiting(mount);
    } else {
      require_none_waits(mount, facts);
    }
    failures = flush_images(mount);
    add_missing(mount, facts.at("store").get<std::string>(), failures);
    if (!failures.empty() && !force) {
      throw Error::with_message(EIO, mount.point + ": not unmounted, since not all is durable: " +
                                         join_failures(failures) +
                                         "; --force unmounts all the same");
    }
    unmount_or_name_users(mount, pid,
                          ended_writes ? "; its writes that waited for space have ended with an "
                                         "error, and none waits any more"
                                       : "");
    if (elsewhere) {
      print_message("umount",
                    mount.point + ": is mounted in another place too; its server goes on");
    } else {
      wait_for_end(server);
      wait_for_end(keeper);
    }
  } catch (const Error& error) {
    if (const std::optional<KeeperLook> keeper = keeper_that_gave_up(mount)) {
      unmount_given_up(mount, *keeper);
    } else {
      if (!is_dead_server(error.code())) throw;
      clean_up_dead(mount);
    }
    failures.clear();
  }
  if (!failures.empty()) {
    throw Error::with_message(
        EIO, mount.point + ": unmounted, but not all is durable: " + join_failures(failures));
  }
  return kDone;
}

}  // namespace cowfs
