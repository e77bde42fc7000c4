#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <string_view>

#include "cmd/command.h"
#include "cmd/daemon.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr std::array kCommands{
    Command{"mount", "show a base as a directory of private, writable images", run_mount},
    Command{"umount", "make everything durable and take a mount down", run_umount},
    Command{"restart", "replace the server of a mount by the program on disk", run_restart},
    Command{"sync", "make everything that was written to a mount durable", run_sync},
    Command{"create", "make images of the base", run_create},
    Command{"ls", "list mounts, or images and who uses them", run_ls},
    Command{"info", "show the facts of an image, a mount or a store", run_info},
    Command{"rm", "remove images", run_rm},
    Command{"mv", "rename an image", run_mv},
    Command{"resize", "change the size of an image", run_resize},
    Command{"limit", "bound the space that an image takes of its own", run_limit},
    Command{"pool", "tell of the pool of a store, enlarge or mend it", run_pool},
    // Its 2 is damage.
    Command{"check", "verify a store, and repair what can be repaired", run_check, kFailed},
};

/// Not for people.
constexpr std::array kForTheKeeper{Command{"serve", "", run_serve}, Command{"keep", "", run_keep}};

/// Null if there is none.
const Command* find_command(const std::string& name) {
  const auto is_it = [&](const Command& command) { return name == command.name; };
  const auto* const found = std::find_if(kCommands.begin(), kCommands.end(), is_it);
  if (found != kCommands.end()) return found;
  const auto* const hidden = std::find_if(kForTheKeeper.begin(), kForTheKeeper.end(), is_it);
  return hidden != kForTheKeeper.end() ? hidden : nullptr;
}

void print_help() {
  fmt::print("Usage: cowfs COMMAND [OPTION]... [ARGUMENT]...\n\n");
  fmt::print("Copy-on-write disks for virtual machines: one shared base, an image for each.\n\n");
  fmt::print("Commands:\n");
  for (const Command& command : kCommands)
    fmt::print("  {:<8} {}\n", command.name, command.summary);
  fmt::print("\n`cowfs COMMAND --help` tells more, and cowfs(1).\n\n");
  fmt::print(
      "Options:\n  -h,--help   print this and exit\n  --version   print the version and exit\n");
}

int run(const Arguments& arguments) {
  const std::string first = arguments.empty() ? "" : arguments[0];
  if (first == "--help" || first == "-h") {
    print_help();
    return kDone;
  }
  if (first == "--version") {
    fmt::print("cowfs {}\n", COWFS_VERSION);
    return kDone;
  }
  const Command* const command = find_command(first);
  if (command == nullptr) {
    print_message("", first.empty() ? "a command is missing; `cowfs --help` lists them"
                                    : first +
                                          ": there is no such command or option; `cowfs --help` "
                                          "lists them");
    return kUsage;
  }
  try {
    return command->run({arguments.begin() + 1, arguments.end()});
  } catch (const UsageError& error) {
    const bool has_help = !std::string_view(command->summary).empty();
    print_message(command->name,
                  has_help ? fmt::format("{}; see `cowfs {} --help`", error.what(), command->name)
                           : error.what());
    return command->usage_status;
  } catch (const std::exception& error) {  // Error, or what the library throws
    print_message(command->name, error.what());
    return kFailed;
  }
}

}  // namespace

void print_message(std::string_view command, std::string_view what) {
  fmt::print(stderr, "cowfs{}{}: {}\n", command.empty() ? "" : " ", command, printable(what));
}

}  // namespace cowfs

int main(int argc, char** argv) {
  // Who starts us may have closed the standard streams: nothing else is to get their numbers.
  int fd = 0;
  while (fd >= 0 && fd <= STDERR_FILENO) fd = ::open("/dev/null", O_RDWR);
  if (fd > STDERR_FILENO) ::close(fd);
  cowfs::note_inherited_descriptors();
  try {
    const int status = cowfs::run({argv + 1, argv + argc});
    // Output that did not arrive (a full disk, a closed pipe) is no success.
    if (std::fflush(stdout) == 0) return status;
    throw cowfs::Error(errno, "standard output");
  } catch (const std::exception& error) {
    cowfs::print_message("", error.what());
    return cowfs::kFailed;
  }
}
