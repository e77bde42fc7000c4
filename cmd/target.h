#pragma once

#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fs/keeper_state.h"
#include "fs/users.h"
#include "store/error.h"
#include "store/host_fs.h"
#include "store/store.h"

namespace cowfs {

/// What a command works on: mounts, and images by a path in one, or, with --store, by name.

/// Absolute, symbolic links followed but for the last component, which need not exist.
std::string absolute_path(const std::string& path);

/// As absolute_path, but the last component is followed too.
std::string followed_path(const std::string& path);

bool is_cowfs(const MountEntry& entry);

/// The cowfs mount at `directory`, dead or alive. Error if it is none.
MountEntry mount_of_directory(const std::string& directory);

/// Whether the server of the mount, of whatever type, is gone. Waits for one that is slow.
bool is_dead(const MountEntry& mount);

/// Error with what to do if the server of the mount is dead. Does nothing for other mounts.
void require_alive(const MountEntry& mount);
/// The keeper of a mount whose servers crashed so often that it starts no other; none if that is
/// not so.
std::optional<KeeperLook> keeper_that_gave_up(const MountEntry& mount);

/// Whether `code` is what a mount's dead server leaves behind.
bool is_dead_server(int code);

/// An image by its path; it need not exist.
struct ImagePath {
  std::string path;  ///< absolute
  std::string name;
  MountEntry mount;

  /// The same for all ways to write the path, through a bind mount too.
  [[nodiscard]] std::pair<uint64_t, std::string> key() const { return {mount.device, name}; }
};

/// Error if the path lies in no cowfs mount, if its server is dead, or if the name is unfit.
ImagePath image_in_mount(const std::string& path);

/// As stat(2) has it; Error if it does not exist.
struct stat status_of(const ImagePath& image);

/// The names of the images in a mount, "dom2" before "dom10".
std::vector<std::string> image_names(const MountEntry& mount);
/// Whether `left` comes first in listings.
bool name_before(const std::string& left, const std::string& right);

/// Error that names the users if the image is in use. `why_not` says what is refused: "is not
/// removed" say. An image that was just closed is waited for, up to a second.
void require_unused(const ImagePath& image, const char* why_not);

/// Error of a call on an image that failed with `code`, which says where the reason stands if the
/// code alone does not tell it.
[[noreturn]] void throw_failure(const ImagePath& image, int code);

/// Whether writes of the image wait for space.
bool waits_for_space(const ImagePath& image);

/// Error if writes of the image wait for space. `why_not` is as for require_unused. The kernel
/// holds such an image locked, and who removes or renames it waits for that with the directory
/// locked: no image of the mount could be made, found or removed any more.
void require_goes_on(const ImagePath& image, const char* why_not);

/// Has the writes of the image that wait for space answered with an error, and lets none wait from
/// now on.
void end_waiting(const ImagePath& image);
/// The same for all images of a mount.
void end_waiting(const MountEntry& mount);

/// Error of `work`, with a word of `cowfs check` where it says that the store is damaged.
template <typename Work>
auto pointing_to_check(const std::string& store, const Work& work) {
  try {
    return work();
  } catch (const Error& error) {
    if (error.code() != EUCLEAN) throw;
    throw Error::with_message(EUCLEAN, std::string(error.what()) + "; `cowfs check " + store +
                                           "` tells all that is wrong");
  }
}

/// What a command does with a store: where only names change, the base may be gone.
enum class Needs { base, names };
/// Opens a store that is not mounted for `command`. Error that names the mount if it is.
std::unique_ptr<Store> open_store(const std::string& directory, const std::string& command,
                                  Needs needs);
/// Error that names the owner if `directory` is a store that the caller has no right to look into.
void require_right_to(const std::string& directory);
/// Makes everything durable. Error if something was lost.
void close_store(Store& store);
/// What the catalog says. Waits for a server that is ending; Error that names the mount if the
/// store is mounted, unless `mounted_too`.
StoreSummary read_store(const std::string& directory, bool mounted_too);

}  // namespace cowfs
