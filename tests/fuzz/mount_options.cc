// Lists of mount options.

#include "cmd/mount_options.h"

#include "cmd/command.h"
#include "store/error.h"
#include "tests/fuzz/input.h"

using namespace cowfs;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  std::vector<std::string> lists;
  while (!input.empty()) lists.push_back(input.text());
  try {
    const MountOptions options = parse_mount_options(lists, true);
    fuzz::require(options.umask.value_or(0) <= 0777);
    fuzz::require(options.uid != uid_t{UINT32_MAX} && options.gid != gid_t{UINT32_MAX});
    fuzz::require(!options.tune_always || options.tune);
    for (const std::string& option : options.fuse) fuzz::require(!option.empty());
  } catch (const Error&) {
  }
  return 0;
}
