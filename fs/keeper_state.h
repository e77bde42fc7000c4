#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

namespace cowfs {

/// What a keeper tells about itself to who looks at its memory: a memfd that it has open under the
/// name below. So it can be found and asked while there is no server, without socket or file.
struct KeeperState {
  static constexpr const char* kName = "cowfs-keeper";  ///< also the keeper's own, in comm
  static constexpr uint32_t kVersion = 1;

  std::array<char, 8> magic;
  std::atomic<uint32_t> version;
  std::atomic<uint32_t> given_up;  ///< no server is started any more
  std::atomic<int32_t> server;     ///< 0: none
  /// Restarts that were asked for and have come to an end, and whether the last one did what it
  /// was to do; else `message` says why not.
  std::atomic<uint32_t> asked;
  std::atomic<uint32_t> well;
  std::array<char, 1024> message;
  std::array<char, 4096> mount_point;
};

/// Makes the memory, for the keeper. The descriptor is the caller's.
int make_keeper_state();
KeeperState& map_keeper_state(int fd);

/// A keeper as others see it.
struct KeeperLook {
  pid_t pid = 0;
  bool given_up = false;
  pid_t server = 0;
  uint32_t asked = 0;
  bool well = false;
  std::string message;
};
/// The keeper of what is mounted there; none if there is none that this user may look at.
std::optional<KeeperLook> find_keeper(const std::string& mount_point);
/// Looks again; none if it is gone.
std::optional<KeeperLook> look_at_keeper(pid_t keeper, const std::string& mount_point);

}  // namespace cowfs
