// Lines of /proc/self/mountinfo and /proc/PID/maps, with paths that others have chosen.

#include "fs/users.h"
#include "store/host_fs.h"
#include "tests/fuzz/input.h"

using namespace cowfs;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string line(reinterpret_cast<const char*>(data), size);
  const MountEntry entry = parse_mount_entry(line);
  fuzz::require(entry.point.size() + entry.type.size() + entry.source.size() <= size);
  if (const std::optional<MappedFile> mapped = parse_mapping(line)) {
    fuzz::require(mapped->path.size() < size);
  }
  return 0;
}
