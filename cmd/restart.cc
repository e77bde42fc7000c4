#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>

#include "cmd/adopt.h"
#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/facts.h"
#include "cmd/target.h"
#include "fs/keeper_state.h"
#include "store/descriptor.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr HelpTexts kRestartHelp{
    .command = "restart",
    .usage = "[OPTION]... DIR",
    .what =
        "Replaces the server of the mount DIR by the program that is on disk now, while machines\n"
        "run: their requests wait for a moment. If the new one does not become ready, the old one\n"
        "goes on. Also tries again where servers died so often that none was started any more, "
        "and\n"
        "brings a new keeper where that was killed.",
    .examples = "  cowfs restart /mnt/vms\n  cowfs restart --keeper /mnt/vms\n",
    .section = 8};

constexpr std::chrono::seconds kPatience{60};
/// In which a server learns that its keeper is gone.
constexpr std::chrono::seconds kTimeToNotice{10};
/// In which somebody may let a keeper go on that was stopped.
constexpr std::chrono::seconds kTimeToGoOn{5};

/// A mount's keeper, and what that calls the mount point: another than we, through a bind mount.
struct Kept {
  std::optional<KeeperLook> keeper;  // none: it is gone, and the server knows that
  std::string point;
};

Kept keeper_of(const MountEntry& mount) {
  if (const std::optional<KeeperLook> keeper = find_keeper(mount.point)) {
    return {keeper, mount.point};
  }
  const auto deadline = std::chrono::steady_clock::now() + kTimeToNotice;
  do {
    const nlohmann::json facts = mount_facts(mount);
    const auto point = facts.at("mount").get<std::string>();
    if (facts.at("keeper_pid").is_null()) return {std::nullopt, point};
    const auto pid = facts.at("keeper_pid").get<pid_t>();
    if (const auto keeper = look_at_keeper(pid, point)) return {keeper, point};
    if (::kill(pid, 0) == 0 || errno != ESRCH) throw Error(EPERM, "ask its keeper");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  } while (std::chrono::steady_clock::now() < deadline);
  throw Error::with_message(
      ETIMEDOUT, mount.point + ": its keeper is gone, and its server does not notice; see the log");
}

/// The same, with one message for who may not.
Kept keeper_that_may_be_asked(const MountEntry& mount) {
  try {
    return keeper_of(mount);
  } catch (const Error& error) {
    if (error.code() != EPERM && error.code() != EACCES) throw;
    throw Error::with_message(
        EPERM, mount.point + ": only root and the user that mounted it may restart it");
  }
}

/// A stopped one would do later what nobody waits for any more.
void require_running(const KeeperLook& keeper, const std::string& point) {
  const auto deadline = std::chrono::steady_clock::now() + kTimeToGoOn;
  for (;;) {
    // The letter after the name (proc(5)); that is in parentheses.
    std::ifstream file("/proc/" + std::to_string(keeper.pid) + "/stat");
    const std::string stat{std::istreambuf_iterator<char>(file), {}};
    const size_t end = stat.rfind(") ");
    if (end == std::string::npos || (stat[end + 2] != 'T' && stat[end + 2] != 't')) return;
    if (std::chrono::steady_clock::now() > deadline) {
      throw Error::with_message(
          ETIMEDOUT,
          fmt::format("{}: its keeper, process {}, is stopped: `kill -CONT {}` lets it go on",
                      point, keeper.pid, keeper.pid));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

/// Has the keeper do what the signal asks for; returns when it has. Throws Error, with its reason,
/// if it has not.
void ask_keeper(const KeeperLook& before, const std::string& point, int signal) {
  const Descriptor keeper(static_cast<int>(::syscall(SYS_pidfd_open, before.pid, 0)), "keeper");
  require_running(before, point);
  // It may have ended, and its number be another's, before that.
  if (!look_at_keeper(before.pid, point)) throw Error(ESRCH, point + ": its keeper");
  if (::syscall(SYS_pidfd_send_signal, keeper.fd(), signal, nullptr, 0) != 0) {
    throw Error{errno, fmt::format("{}: ask its keeper, process {}", point, before.pid)};
  }
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < deadline) {
    pollfd ended{.fd = keeper.fd(), .events = POLLIN, .revents = 0};
    if (::poll(&ended, 1, 5) > 0) {
      throw Error::with_message(ESRCH, point + ": its keeper has ended");
    }
    // None for a moment while it becomes another program.
    const std::optional<KeeperLook> now = look_at_keeper(before.pid, point);
    if (!now || now->asked == before.asked) continue;
    if (now->well) return;
    throw Error::with_message(EIO, point + ": " + now->message);
  }
  throw Error::with_message(
      ETIMEDOUT, point + ": nothing has come of it in a minute; see the log, which will say so");
}

/// Another restart was faster in bringing a keeper, and with it the server that we were to bring.
int wait_for_keeper(const std::string& point) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < deadline) {
    if (const std::optional<KeeperLook> keeper = find_keeper(point); keeper && keeper->asked > 0) {
      if (keeper->well) return kDone;
      throw Error::with_message(EIO, point + ": " + keeper->message);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  throw Error::with_message(ETIMEDOUT,
                            point +
                                ": another restart brings a keeper, and is not done in a "
                                "minute; see the log");
}

}  // namespace

int run_restart(const Arguments& arguments) {
  std::string directory;
  CommandLine line(kRestartHelp);
  line.argument("DIR", directory, "the mount point");
  bool keeper = false;
  line.flag("--keeper", keeper, "replace the keeper instead, which is the same process then");
  if (!line.parse(arguments)) return kDone;

  const MountEntry mount = mount_of_directory(directory);
  // A keeper may end, and another restart bring one, between our look and our deed.
  for (int attempts = 5;; --attempts) {
    const Kept kept = keeper_that_may_be_asked(mount);
    try {
      if (!kept.keeper) return adopt(mount, kept.point);
      ask_keeper(*kept.keeper, kept.point, keeper ? SIGUSR2 : SIGUSR1);
      return kDone;
    } catch (const Error& error) {
      // What is said of a keeper, or of a server, that ends meanwhile or is another's already.
      constexpr std::array kOvertaken{ESRCH, EBUSY, EBADF, ECHILD};
      if (std::count(kOvertaken.begin(), kOvertaken.end(), error.code()) == 0) throw;
      if (!kept.keeper && find_keeper(kept.point)) return wait_for_keeper(kept.point);
      if (attempts == 1) throw;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
}

}  // namespace cowfs
