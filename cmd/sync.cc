#include <cerrno>
#include <nlohmann/json.hpp>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/facts.h"
#include "cmd/flush.h"
#include "cmd/target.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr HelpTexts kSyncHelp{
    .command = "sync",
    .usage = "[OPTION]... DIR",
    .what =
        "Flushes every image of the mount at DIR: when it returns, what was "
        "written before is durable.\n"
        "sync(1) and close(2) do not promise that.",
    .examples = "  cowfs sync /mnt/vms\n"};

}  // namespace

int run_sync(const Arguments& arguments) {
  std::string directory;
  CommandLine line(kSyncHelp);
  line.argument("DIR", directory, "the mount point");
  if (!line.parse(arguments)) return kDone;

  const MountEntry mount = mount_of_directory(directory);
  require_none_waits(mount, mount_facts(mount));
  const std::vector<std::string> failures = flush_images(mount);
  if (!failures.empty()) {
    throw Error::with_message(EIO,
                              mount.point + ": not all is durable: " + join_failures(failures));
  }
  return kDone;
}

}  // namespace cowfs
