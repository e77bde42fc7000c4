#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/daemon.h"
#include "cmd/log_target.h"
#include "cmd/mount_options.h"
#include "cmd/sizes.h"
#include "cmd/stale_mount.h"
#include "cmd/target.h"
#include "fs/control.h"
#include "fs/keeper.h"
#include "fs/server.h"
#include "fs/server_config.h"
#include "store/error.h"
#include "store/policy.h"

namespace cowfs {
namespace {

constexpr HelpTexts kMountHelp{
    .command = "mount",
    .usage = "[OPTION]... BASE DIR",
    .what =
        "Shows the disk image (raw, qcow2, qcow) or block device BASE as the directory DIR, in "
        "which every regular\n"
        "file is a private, writable image of it. What is written goes to the store, which is made "
        "at\n"
        "first use. Returns when the file system is usable. BASE must not change any more.",
    .examples =
        "  cowfs mount /srv/base.img /mnt/vms\n"
        "  cowfs mount --store /srv/golden.cowfs --chunk-size 64K /dev/vg/golden /mnt/vms\n"
        "  cowfs mount --policy pool --pool /dev/vdb /srv/base.img /mnt/vms\n"
        "  cowfs mount --allow-backing /srv/golden debian-12.qcow2 /mnt/vms\n"
        "  cowfs mount -o ro,uid=1000 --foreground /srv/base.img /mnt/vms\n",
    .section = 8};

struct Line {
  std::string base;
  std::string directory;
  std::optional<std::string> store;
  std::optional<std::string> chunk_size;
  std::optional<std::string> policy;
  std::optional<std::string> pool;
  std::optional<std::string> pool_size;
  std::optional<std::string> base_format;
  std::optional<std::string> base_snapshot;
  Arguments allow_backing;
  std::optional<std::string> log_file;
  std::string log_level = "info";
  Arguments options;
  bool accept_changed_base = false;
  bool foreground = false;
};

bool parse_line(const Arguments& arguments, Line& values) {
  CommandLine line(kMountHelp);
  line.argument("BASE", values.base, "the base: a disk image (raw, qcow2, qcow) or a block device");
  line.argument("DIR", values.directory, "the mount point, a directory");
  line.option("--store", values.store, "DIR", "where changes are kept; default: BASE.cowfs");
  line.option("--chunk-size", values.chunk_size, "SIZE",
              "of a new store: a power of two from 4K to 2M; default: 4K, of a pool 64K");
  line.option("--policy", values.policy, "NAME",
              "of a new store: sparse, the default, pool or qcow2; see cowfs-policy(7)");
  line.option("--pool", values.pool, "PATH",
              "of policy pool: the block device or file that takes all that is written; default: "
              "the file pool in the store");
  line.option("--pool-size", values.pool_size, "SIZE",
              "of a new pool in a file; default: what the file system has free");
  line.option("--base-format", values.base_format, "FORMAT",
              "of the base of a new store: raw, qcow2 or qcow; default: as its first bytes say");
  line.option("--base-snapshot", values.base_snapshot, "NAME",
              "of a new store: show this internal snapshot of a qcow2 base");
  line.option("--allow-backing", values.allow_backing, "PATH",
              "let backing files be PATH or below it, besides beside the base");
  line.flag("--accept-changed-base", values.accept_changed_base,
            "go on with a base that is not what it was: images may be damaged by it");
  line.flag("-f,--foreground", values.foreground, "stay in the foreground, log to standard error");
  line.option("--log-file", values.log_file, "FILE", "log to FILE, which SIGHUP reopens");
  line.option("--log-level", values.log_level, "LEVEL",
              "trace, debug, info, warn or error; default: info");
  line.option("-o", values.options, "OPTIONS",
              "mount options, separated by commas; see cowfs-mount(8)");
  return line.parse(arguments);
}

/// Of a cowfs mount whose server goes on without a keeper.
std::string word_of_keeper(const MountEntry& mount) {
  std::string word;
  attempt([&] {
    if (!is_cowfs(mount) || !ask_server(mount.point).at("keeper_pid").is_null()) return;
    word = fmt::format(
        "; its keeper is gone and its server goes on: `cowfs restart {}` brings another keeper, "
        "`cowfs umount {}` ends it in order",
        mount.point, mount.point);
  });
  return word;
}

/// The mount point's real path, cleaned up after a mount that died. Error unless it is a directory
/// on which nothing is mounted.
std::string check_mount_point(const std::string& path) {
  const auto refuse = [&](int code, const std::string& why) {
    throw Error::with_message(code, "mount point " + path + ": " + why);
  };
  clean_up_stale_mounts(followed_path(path), "mount");
  if (const auto mounted = mount_at(followed_path(path)); mounted && is_cowfs(*mounted)) {
    require_alive(*mounted);
  }
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) refuse(ENOENT, "does not exist; make it with mkdir(1)");
    throw Error{errno, "mount point " + path};
  }
  if (!S_ISDIR(status.st_mode)) refuse(ENOTDIR, "is not a directory");
  std::string real = std::filesystem::canonical(path);
  if (const std::optional<MountEntry> entry = mount_at(real)) {
    refuse(EBUSY, fmt::format("is already a mount ({} of {}){}", entry->type, entry->source,
                              word_of_keeper(*entry)));
  }
  return real;
}

bool is_inside(const std::string& path, const std::string& directory) {
  return path == directory || path.starts_with(directory == "/" ? "/" : directory + "/");
}

/// What is below the mount point cannot be reached while it is mounted.
void check_outside(const char* what, const std::string& path, const std::string& mount_point) {
  std::error_code error;
  const std::string real = std::filesystem::weakly_canonical(path, error);
  if (is_inside(path, mount_point) || (!error && is_inside(real, mount_point))) {
    throw Error::with_message(
        EINVAL, fmt::format("{} {}: is inside the mount point {}", what, path, mount_point));
  }
}

std::string store_directory(const Line& line, const std::string& base) {
  if (line.store) return absolute_path(*line.store);
  struct stat status {};
  if (::stat(base.c_str(), &status) == 0 && S_ISBLK(status.st_mode)) {
    throw Error::with_message(EINVAL,
                              "base " + base +
                                  ": is a block device: the store cannot be beside it, since "
                                  "/dev does not survive a reboot; name a directory for it "
                                  "with --store");
  }
  return base + ".cowfs";
}

/// As what the server is: it writes to the store for everybody.
void require_writable(const std::string& store) {
  const std::string parent = std::filesystem::path(store).parent_path();
  const std::string& place = ::access(store.c_str(), F_OK) == 0 ? store : parent;
  if (::faccessat(AT_FDCWD, place.c_str(), R_OK | W_OK | X_OK, AT_EACCESS) == 0) return;
  if (errno != EACCES) return;  // the store says better what it is
  throw Error::with_message(EACCES, fmt::format("store {}: Permission denied: user {} may not "
                                                "write to {}; name a directory that he may write "
                                                "to with --store",
                                                store, ::geteuid(), place));
}

void warn_of_memory(const std::string& store, const char* what = "store",
                    const char* lost = "all images are") {
  if (std::filesystem::exists(store)) return;
  std::error_code error;
  const std::string parent = std::filesystem::path(store).parent_path();
  if (!std::filesystem::is_directory(parent, error)) return;  // the store says so better
  const HostFileSystem host = host_file_system(parent);
  if (!host.in_memory) return;
  print_message("mount",
                fmt::format("warning: {} {}: is made on {}, in memory: {} gone with the next "
                            "reboot",
                            what, store, host.type, lost));
}

std::string known_policy(const std::string& name) {
  try {
    return std::string(find_policy(name).name);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

BaseFormat known_base_format(const std::string& name) {
  const std::optional<BaseFormat> format = find_base_format(name);
  if (!format) throw UsageError("--base-format " + name + ": is none of raw, qcow2 and qcow");
  return *format;
}

/// Before anything is made: whether the base can serve as one, as far as can be said by now.
void check_base(const ServerConfig& server) {
  std::error_code error;
  const File file = open_base_file(server.store.base_path);
  // How it is to be read is on record then, for the server to see.
  if (std::filesystem::exists(server.store.directory + "/catalog.db", error) || error) return;
  BaseOptions options;
  options.find_formats = true;
  options.format = server.store.base_format;
  options.snapshot = server.store.base_snapshot;
  options.allow_backing = server.store.allow_backing;
  const Base check(server.store.base_path, options);
  const BaseFile& first = *check.files().front();
  if (server.store.base_format || first.format != BaseFormat::raw) return;
  if (const std::optional<UnreadFormat> other = guess_unread_format(first.file)) {
    print_message("mount",
                  fmt::format("warning: base {}: looks like {}, and is read as raw, so that "
                              "machines see that file as their disk; {} (--base-format raw, if it "
                              "is meant)",
                              server.store.base_path, other->what, other->way));
  }
}

ServerConfig configure(const Line& line, MountOptions options) {
  ServerConfig config;
  if (line.chunk_size) config.store.chunk_size = parse_chunk_size(*line.chunk_size);
  if (line.policy) config.store.policy = known_policy(*line.policy);
  if (line.pool_size) config.store.pool_size = parse_size(*line.pool_size);
  if (line.base_format) config.store.base_format = known_base_format(*line.base_format);
  config.store.base_snapshot = line.base_snapshot;
  for (const std::string& path : line.allow_backing) {
    const std::string place = absolute_path(path);
    if (::access(place.c_str(), F_OK) != 0) {
      throw Error::with_message(errno,
                                fmt::format("--allow-backing {}: {}", path, error_text(errno)));
    }
    config.store.allow_backing.push_back(place);
  }
  config.mount_point = check_mount_point(line.directory);
  const std::string base = absolute_path(line.base);
  config.store.base_path = base;
  config.store.directory = store_directory(line, base);
  check_outside("base", base, config.mount_point);
  check_outside("store", config.store.directory, config.mount_point);
  if (line.pool) {
    config.store.pool = absolute_path(*line.pool);
    check_outside("pool", *config.store.pool, config.mount_point);
  }
  if (is_inside(config.mount_point, config.store.directory)) {
    throw Error::with_message(EINVAL, fmt::format("mount point {}: is inside the store {}",
                                                  config.mount_point, config.store.directory));
  }
  config.store.create = true;
  config.store.accept_changed_base = line.accept_changed_base;
  config.read_only = options.read_only;
  config.allow_other = options.allow_other;
  config.uid = options.uid;
  config.gid = options.gid;
  config.max_read = options.max_read;
  config.umask = options.umask;
  config.cache = options.cache;
  // Under the writeback cache an error would lose what the machine takes for written.
  config.full = options.full.value_or(options.cache == CacheMode::writeback ? FullMode::wait
                                                                            : FullMode::error);
  if (options.watermarks) config.watermarks = *options.watermarks;
  config.on_watermark = options.on_watermark;
  config.resend = options.resend;
  config.fuse_options = std::move(options.fuse);
  return config;
}

/// Root opens it himself, for others fusermount3(1) does.
void check_fuse_device() {
  const char* device = "/dev/fuse";
  const int mode = ::geteuid() == 0 ? R_OK | W_OK : F_OK;
  if (::access(device, mode) == 0) return;
  const std::string hint = errno == ENOENT ? "; `modprobe fuse` may help" : "";
  throw Error::with_message(errno, std::string(device) + ": " + error_text(errno) + hint);
}

/// The mount serves the others, and who has just mounted does not look into the log.
void warn_of_failed_images(const std::string& mount_point) {
  attempt([&] {
    const auto failed = ask_server(mount_point).at("failed_images").get<uint64_t>();
    if (failed == 0) return;
    print_message(
        "mount",
        fmt::format("warning: {}: {} cannot be used as {}: `cowfs ls {}` marks "
                    "{}, and `cowfs info IMAGE` says why",
                    mount_point, failed == 1 ? "1 image" : fmt::format("{} images", failed),
                    failed == 1 ? "it is" : "they are", mount_point, failed == 1 ? "it" : "them"));
  });
}

LogTarget log_target(const Line& line) {
  LogTarget target;
  target.level = line.log_level;
  if (line.log_file) {
    target.kind = LogTarget::Kind::file;
    target.path = absolute_path(*line.log_file);
  } else if (line.foreground) {
    target.kind = LogTarget::Kind::standard_error;
  }
  return target;
}

}  // namespace

int run_mount(const Arguments& arguments) {
  Line line;
  if (!parse_line(arguments, line)) return kDone;
  parse_log_level(line.log_level);
  const MountOptions options = parse_mount_options(line.options, ::geteuid() == 0);
  const ServerConfig server = configure(line, options);
  check_base(server);
  check_fuse_device();
  require_writable(server.store.directory);
  const LogTarget target = log_target(line);
  const Log log = open_log(target);
  // Not what a link leads to: the link is somebody's.
  const bool makes_pool =
      server.store.pool &&
      !std::filesystem::exists(std::filesystem::symlink_status(*server.store.pool));
  warn_of_memory(server.store.directory);
  if (makes_pool) warn_of_memory(*server.store.pool, "pool", "all that is written is");

  const nlohmann::json config{{"log", to_json(target)}, {"server", to_json(server)}};
  const KeeperConfig keeper{.mount_point = server.mount_point,
                            .arguments = {"cowfs", "serve", server.mount_point},
                            .instead_of_program = {},
                            .foreground = line.foreground,
                            .server = config.dump(),
                            .store = server.store.directory,
                            .on_watermark = server.on_watermark,
                            .tune = options.tune,
                            .tune_always = options.tune_always,
                            .log = log.logger,
                            .reopen_log = log.reopen};
  const auto keep_until_unmounted = [&](const std::function<void()>& ready) {
    return keep(keeper, ready);
  };
  const bool was_there = std::filesystem::exists(server.store.directory);
  const pid_t self = ::getpid();
  const int status = pointing_to_check(server.store.directory, [&] {
    try {
      if (!line.foreground) return run_in_background(keep_until_unmounted);
      close_inherited_descriptors();
      return keep_until_unmounted([] {});
    } catch (...) {
      // The server has emptied what it made, and may not remove it.
      if (!was_there) ::rmdir(server.store.directory.c_str());
      if (makes_pool) ::unlink(server.store.pool->c_str());
      throw;
    }
  });
  // The child comes here too, after the unmount.
  if (!line.foreground && ::getpid() == self) warn_of_failed_images(server.mount_point);
  return status;
}

}  // namespace cowfs
