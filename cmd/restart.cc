#include <fmt/format.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/target.h"
#include "fs/keeper_state.h"
#include "store/descriptor.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr HelpTexts kHelp{
    .command = "restart",
    .usage = "DIR",
    .what =
        "Replaces the server of the mount DIR by the program that is on disk now, while machines\n"
        "run: their requests wait for a moment. If the new one does not become ready, the old one\n"
        "goes on. Also tries again where servers died so often that none was started any more.",
    .examples = "  cowfs restart /mnt/vms\n",
    .section = 8};

constexpr std::chrono::seconds kPatience{60};

}  // namespace

int run_restart(const Arguments& arguments) {
  std::string directory;
  CommandLine line(kHelp);
  line.argument("DIR", directory, "the mount point");
  if (!line.parse(arguments)) return kDone;

  const MountEntry mount = mount_of_directory(directory);
  const std::optional<KeeperLook> before = find_keeper(mount.point);
  if (!before) {
    throw Error::with_message(ESRCH, mount.point + ": its keeper is gone, or is not yours");
  }
  const Descriptor keeper(static_cast<int>(::syscall(SYS_pidfd_open, before->pid, 0)), "keeper");
  // It may have ended, and its number be another's, before that.
  if (!look_at_keeper(before->pid, mount.point)) throw Error(ESRCH, mount.point + ": its keeper");
  if (::syscall(SYS_pidfd_send_signal, keeper.fd(), SIGUSR1, nullptr, 0) != 0) {
    throw Error(errno, fmt::format("{}: ask its keeper, process {}", mount.point, before->pid));
  }
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < deadline) {
    const std::optional<KeeperLook> now = look_at_keeper(before->pid, mount.point);
    if (!now) throw Error::with_message(ESRCH, mount.point + ": its keeper ended meanwhile");
    if (now->asked != before->asked) {
      if (now->well) return kDone;
      throw Error::with_message(EIO, mount.point + ": not restarted: " + now->message);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  throw Error::with_message(ETIMEDOUT, mount.point +
                                           ": no server has become ready in a minute; see "
                                           "the log");
}

}  // namespace cowfs
