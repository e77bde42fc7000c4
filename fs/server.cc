#include "fs/server.h"

#include <fuse_lowlevel.h>
#include <poll.h>
#include <spdlog/logger.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <set>

#include "fs/file_system.h"
#include "fs/operations.h"
#include "fs/session.h"
#include "fs/tuning.h"
#include "fs/users.h"
#include "store/base_watch.h"
#include "store/descriptor.h"
#include "store/error.h"

namespace cowfs {
namespace {

/// The signals that the server waits for; blocked in every thread that is started later.
sigset_t block_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  return signals;
}

std::vector<std::string> mount_options(const ServerConfig& config, const Store& store) {
  std::vector<std::string> options = config.fuse_options;
  const auto has = [&](std::string_view prefix) {
    return std::any_of(options.begin(), options.end(),
                       [&](const std::string& option) { return option.starts_with(prefix); });
  };
  if (!has("fsname=")) options.push_back(fuse_option("fsname", store.facts().base_path));
  if (!has("subtype=")) options.emplace_back("subtype=cowfs");
  options.emplace_back("default_permissions");
  if (config.allow_other) options.emplace_back("allow_other");
  if (config.read_only) options.emplace_back("ro");
  if (config.max_read) options.push_back("max_read=" + std::to_string(*config.max_read));
  return options;
}

/// Runs fusermount3(1), for who may not unmount by himself. 0 or an errno value.
int run_fusermount(const std::string& mount_point) {
  const pid_t child = ::fork();
  if (child < 0) return errno;
  if (child == 0) {
    ::execlp("fusermount3", "fusermount3", "-u", "-q", mount_point.c_str(), nullptr);
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : EBUSY;
}

/// Unmounts if nothing uses the mount; logs who does otherwise.
void unmount_if_idle(const ServerConfig& config, uint64_t device) {
  int code = ::umount2(config.mount_point.c_str(), UMOUNT_NOFOLLOW) == 0 ? 0 : errno;
  if (code == EPERM) code = run_fusermount(config.mount_point);
  if (code == 0) return;
  std::string who;
  for (const auto& [inode, user] : users_of_mount(device)) {
    who += (who.empty() ? "" : ", ") + describe(user);
  }
  config.log->warn("unmount: {}: {}{}", config.mount_point, error_text(code),
                   who.empty() ? "" : "; in use by " + who);
}

/// Serves signals until `ended` can be read.
void serve_signals(const ServerConfig& config, const sigset_t& signals, int ended,
                   uint64_t device) {
  const Descriptor signal_fd(::signalfd(-1, &signals, SFD_CLOEXEC), "signalfd");
  std::array<pollfd, 2> polled{pollfd{ended, POLLIN, 0}, pollfd{signal_fd.fd(), POLLIN, 0}};
  while (true) {
    if (::poll(polled.data(), polled.size(), -1) < 0) {
      if (errno == EINTR) continue;
      throw Error(errno, "poll");
    }
    if (polled[0].revents != 0) return;
    signalfd_siginfo info{};
    if (::read(signal_fd.fd(), &info, sizeof(info)) != sizeof(info)) continue;
    // A server that lacks memory, threads or descriptors for it goes on serving.
    attempt([&] {
      if (info.ssi_signo == SIGHUP) {
        if (config.reopen_log) config.reopen_log();
        config.log->info("log: reopened");
      } else {
        config.log->info("signal {}: unmounting {}", info.ssi_signo, config.mount_point);
        unmount_if_idle(config, device);
      }
    });
  }
}

}  // namespace

bool serve(ServerConfig config, const std::function<void()>& ready) {
  const bool io_flusher = prepare_process(*config.log);
  const sigset_t signals = block_signals();

  config.store.mount = config.mount_point;
  config.store.log = config.log;
  Store store(config.store);
  // A mount that fails leaves nothing behind.
  struct Unmake {
    Store& store;
    bool armed = true;
    ~Unmake() {
      if (armed) store.unmake_if_new();
    }
  } unmake{store};
  uint64_t lost_writes = 0;
  const Descriptor ended(::eventfd(0, EFD_CLOEXEC), "eventfd");
  {
    const BaseWatch watch(
        store.base(), [&store](const std::string& what) { store.note_base_written(what); },
        *config.log);
    FileSystem fs(store, config);
    Session session(config.mount_point, mount_options(config, store), operations(), &fs);
    session.start(FileSystem::threads(), [&ended] {
      const uint64_t one = 1;
      static_cast<void>(!::write(ended.fd(), &one, sizeof(one)));
    });

    // Answered once the kernel has taken in the reply to INIT; only then can the bdi be tuned.
    struct stat root {};
    if (::stat(config.mount_point.c_str(), &root) != 0) {
      throw Error(errno, "use " + config.mount_point);
    }
    if (config.tune && ::geteuid() == 0) {
      tune_bdi(root.st_dev, io_flusher || config.tune_always, *config.log);
    }
    const size_t images = store.image_count();
    config.log->info("mounted: {}: base {}, store {}, {} {}", config.mount_point,
                     store.facts().base_path, store.facts().directory, images,
                     images == 1 ? "image" : "images");
    unmake.armed = false;
    ready();
    serve_signals(config, signals, ended.fd(), root.st_dev);
    store.announce_ending();
    session.join();
    fs.finish();  // while there is a session to answer to
    lost_writes = fs.lost_writes();
  }
  const bool durable = store.close();
  store.clear_failures();
  if (!durable) {
    config.log->error("ended: {}: not everything that was written is durable; see above",
                      config.mount_point);
  } else if (lost_writes > 0) {
    config.log->warn("ended: {}: {} {} failed, see above; everything else is durable",
                     config.mount_point, lost_writes, lost_writes == 1 ? "write" : "writes");
  } else {
    config.log->info("ended: {}: everything is durable", config.mount_point);
  }
  return durable;
}

}  // namespace cowfs
