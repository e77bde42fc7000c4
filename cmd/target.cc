#include "cmd/target.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "cmd/flush.h"
#include "cmd/logging.h"
#include "fs/control.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

using Clock = std::chrono::steady_clock;

void sleep_a_moment() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

/// Without slashes at the end.
std::string trimmed(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

/// realpath(3), which does not touch what is mounted at the path itself; none if it fails.
std::optional<std::string> real_path(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr),
                                                         std::free);
  if (real == nullptr) return std::nullopt;
  return real.get();
}

Error mounted_error(const std::string& directory, const std::string& mount,
                    const std::string& command = "") {
  // Of commands on the store as a whole.
  const std::string_view what =
      command == "pool" ? "name that" : "name images by their paths there";
  return Error::with_message(EBUSY,
                             fmt::format("store {}: is mounted on {}; {}", directory, mount, what));
}

void ask_to_end(const MountEntry& mount, const nlohmann::json& question) {
  try {
    ask_server(mount.point, question);
  } catch (const Error& error) {
    if (error.code() != EPERM) throw;
    throw Error::with_message(EPERM, mount.point +
                                         ": only root and the user that mounted it may end what "
                                         "waits for space");
  }
}

std::string list_of(const std::vector<User>& users) {
  std::string text;
  for (const User& user : users) text += (text.empty() ? "" : ", ") + describe(user);
  return text;
}

}  // namespace

std::string absolute_path(const std::string& path) {
  if (path.empty()) throw Error::with_message(ENOENT, "the empty path names nothing");
  const std::filesystem::path absolute = std::filesystem::absolute(trimmed(path));
  const std::string last = absolute.filename();
  if (last != "." && last != ".." && absolute.has_relative_path()) {
    if (const std::optional<std::string> parent = real_path(absolute.parent_path())) {
      return std::filesystem::path(*parent) / last;
    }
  }
  return real_path(absolute).value_or(absolute.lexically_normal());
}

std::string followed_path(const std::string& path) {
  std::string absolute = absolute_path(path);
  std::error_code error;
  if (!std::filesystem::is_symlink(absolute, error)) return absolute;
  return real_path(absolute).value_or(absolute);
}

bool is_cowfs(const MountEntry& entry) { return entry.type == "fuse.cowfs"; }

MountEntry mount_of_directory(const std::string& directory) {
  if (directory.empty()) throw Error::with_message(ENOENT, "the empty path names nothing");
  const std::optional<std::string> real = real_path(trimmed(directory));
  if (!real) throw Error{errno, directory};
  std::optional<MountEntry> mount = mount_at(*real);
  if (!mount || !is_cowfs(*mount)) {
    throw Error::with_message(ENOTTY, directory + ": is not a cowfs mount; `cowfs ls` lists them");
  }
  return *mount;
}

bool is_dead_server(int code) { return code == ENOTCONN || code == ECONNABORTED; }

bool is_dead(const MountEntry& mount) {
  // Unlike stat(2) this asks the server each time.
  struct statfs status {};
  return ::statfs(mount.point.c_str(), &status) != 0 && is_dead_server(errno);
}

std::optional<KeeperLook> keeper_that_gave_up(const MountEntry& mount) {
  // It answers everything with EIO.
  struct statfs status {};
  if (::statfs(mount.point.c_str(), &status) == 0 || errno != EIO) return std::nullopt;
  const std::optional<KeeperLook> keeper = find_keeper(mount.point);
  return keeper && keeper->given_up ? keeper : std::nullopt;
}

void require_alive(const MountEntry& mount) {
  if (const std::optional<KeeperLook> keeper = keeper_that_gave_up(mount)) {
    throw Error::with_message(
        EIO, fmt::format("mount {}: its server crashed again and again, and its keeper, process "
                         "{}, starts no other: the log says why; `cowfs restart {}` tries again",
                         mount.point, keeper->pid, mount.point));
  }
  if (!is_dead(mount)) return;
  throw Error::with_message(ENOTCONN,
                            fmt::format("mount {}: its server is dead; mount it again, or "
                                        "clean up with `cowfs umount {}`",
                                        mount.point, mount.point));
}

ImagePath image_in_mount(const std::string& path) {
  ImagePath image{.path = absolute_path(path), .name = "", .mount = {}};
  const std::filesystem::path whole(image.path);
  image.name = whole.filename();
  if (const std::optional<MountEntry> itself = mount_at(image.path); itself && is_cowfs(*itself)) {
    throw Error::with_message(EISDIR, path + ": is a mount; name an image in it");
  }
  const std::optional<MountEntry> mount = mount_at(whole.parent_path());
  if (!mount || !is_cowfs(*mount)) {
    throw Error::with_message(
        ENOTTY, path +
                    ": is not in a cowfs mount; of a store that is not mounted, give the name "
                    "and --store DIR");
  }
  image.mount = *mount;
  require_alive(image.mount);
  check_name(image.name);
  return image;
}

struct stat status_of(const ImagePath& image) {
  struct stat status {};
  if (::stat(image.path.c_str(), &status) != 0) throw Error{errno, image.path};
  return status;
}

bool name_before(const std::string& left, const std::string& right) {
  return ::strverscmp(left.c_str(), right.c_str()) < 0;
}

std::vector<std::string> image_names(const MountEntry& mount) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(mount.point.c_str()), ::closedir);
  if (directory == nullptr) {
    require_alive(mount);
    throw Error{errno, mount.point};
  }
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(directory.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  std::sort(names.begin(), names.end(), name_before);
  return names;
}

void require_unused(const ImagePath& image, const char* why_not) {
  const uint64_t inode = status_of(image).st_ino;
  const auto deadline = Clock::now() + std::chrono::seconds(1);
  for (;;) {
    const Users users = users_of_mount(image.mount.device);
    const auto [first, last] = users.equal_range(inode);
    std::vector<User> here;
    for (auto at = first; at != last; ++at) here.push_back(at->second);
    if (!here.empty()) {
      throw Error::with_message(EBUSY, fmt::format("{}: is in use by {}, so it {} without --force",
                                                   image.path, list_of(here), why_not));
    }
    // The server also counts those that cannot be seen from here: kernel threads, and processes of
    // others where the caller is not root. It hears of a close a little later.
    uint64_t openers = 0;
    try {
      openers = ask_server(image.path).value("openers", uint64_t{0});
    } catch (const Error& error) {
      // Who may not read it may yet be allowed to remove it, and what cannot be opened is not in
      // use.
      if (error.code() != EACCES && error.code() != EUCLEAN && error.code() != EOPNOTSUPP) throw;
    }
    if (openers <= 1) return;
    if (Clock::now() > deadline) {
      throw Error::with_message(
          EBUSY, fmt::format("{}: is in use by somebody who cannot be seen from here, so it {} "
                             "without --force",
                             image.path, why_not));
    }
    sleep_a_moment();
  }
}

void throw_failure(const ImagePath& image, int code) {
  const bool tells_little =
      code == EIO || code == EUCLEAN || code == EOPNOTSUPP || code == EBUSY || code == ENOSPC;
  throw Error::with_message(code,
                            fmt::format("{}: {}{}", image.path, error_text(code),
                                        tells_little ? "; the log of the mount says why" : ""));
}

bool waits_for_space(const ImagePath& image) {
  const nlohmann::json facts =
      ask_server(image.mount.point, {{"ask", "info"}, {"image", image.name}});
  return facts.at("parked").get<uint64_t>() > 0;
}

void require_goes_on(const ImagePath& image, const char* why_not) {
  if (!waits_for_space(image)) return;
  throw Error::with_message(
      EBUSY,
      fmt::format("{}: its writes wait for space, so it {}; {}, raise its limit, or "
                  "end them with cowfs rm --force, which removes it, or cowfs umount --force",
                  image.path, why_not, way_to_space(image.mount, ask_server(image.mount.point))));
}

void end_waiting(const ImagePath& image) {
  ask_to_end(image.mount, {{"ask", "end_waiting"}, {"image", image.name}});
}

void end_waiting(const MountEntry& mount) { ask_to_end(mount, {{"ask", "end_waiting"}}); }

void require_right_to(const std::string& directory) {
  struct stat status {};
  if (::stat(directory.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) return;
  if (::faccessat(AT_FDCWD, directory.c_str(), R_OK | X_OK, AT_EACCESS) == 0) return;
  if (errno != EACCES) return;
  throw Error::with_message(
      EACCES, fmt::format("store {}: Permission denied: it is for its owner, user {}, and root; "
                          "others use its images through a mount",
                          directory, status.st_uid));
}

std::unique_ptr<Store> open_store(const std::string& directory, const std::string& command,
                                  Needs needs) {
  Store::Options options;
  options.directory = absolute_path(directory);
  options.log = command_logger(command);
  options.names_only = needs == Needs::names;
  require_right_to(options.directory);
  try {
    return pointing_to_check(options.directory, [&] { return std::make_unique<Store>(options); });
  } catch (const Error& error) {
    if (error.code() != EBUSY) throw;
    const std::optional<Holder> holder = StoreLock::holder(options.directory);
    if (!holder || holder->mount.empty() || holder->ending) throw;
    throw mounted_error(options.directory, holder->mount, command);
  }
}

void close_store(Store& store) {
  if (!store.close()) {
    throw Error::with_message(
        EIO, "store " + store.facts().directory + ": not all that was written before is durable");
  }
}

StoreSummary read_store(const std::string& directory, bool mounted_too) {
  const std::string absolute = absolute_path(directory);
  require_right_to(absolute);
  const auto deadline = Clock::now() + std::chrono::seconds(30);
  for (;;) {
    std::error_code hidden;
    if (!std::filesystem::exists(absolute, hidden)) {
      if (hidden) throw Error(hidden.value(), "store " + absolute);
      throw Error::with_message(ENOENT, "store " + absolute + ": there is none");
    }
    StoreSummary summary = pointing_to_check(absolute, [&] { return summarize_store(absolute); });
    const bool readable = !summary.facts.directory.empty();
    if (!summary.holder || (mounted_too && readable)) return summary;
    const Holder& holder = *summary.holder;
    if (!holder.ending && !holder.mount.empty() && mount_at(holder.mount)) {
      throw mounted_error(absolute, holder.mount);
    }
    if (Clock::now() > deadline) {
      throw Error::with_message(
          EBUSY, fmt::format("store {}: in use by process {}", absolute, holder.pid));
    }
    sleep_a_moment();
  }
}

}  // namespace cowfs
