#include "fs/server.h"

#include <fuse_lowlevel.h>
#include <poll.h>
#include <spdlog/logger.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <list>
#include <optional>
#include <set>
#include <utility>

#include "fs/apart.h"
#include "fs/file_system.h"
#include "fs/keeper_link.h"
#include "fs/mount.h"
#include "fs/operations.h"
#include "fs/sandbox.h"
#include "fs/session.h"
#include "fs/tuning.h"
#include "store/base_watch.h"
#include "store/descriptor.h"
#include "store/error.h"
#include "store/live_memory.h"

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

/// All that this process is to do is answered; the next server goes on.
[[noreturn]] void hand_over(const ServerConfig& config, FileSystem& fs, Session& session) {
  config.log->info("hand-over: {}: requested by the keeper", config.mount_point);
  session.stop_reading();
  fs.finish_deferred();
  config.log->flush();
  // As by a SIGKILL, at a quiet moment: nothing is given back that the next one goes on with.
  ::_exit(0);
}

/// Serves signals and the keeper until `ended` can be read.
class Control {
 public:
  Control(const ServerConfig& config, KeeperLink& keeper, const sigset_t& signals, FileSystem& fs,
          Session& session)
      : config_(config),
        keeper_(keeper),
        fs_(fs),
        session_(session),
        signal_fd_(::signalfd(-1, &signals, SFD_CLOEXEC), "signalfd") {}

  void run(int ended) {
    while (true) {
      // Also where that was found out by speaking to it.
      if (keeper_.fd() < 0 && !std::exchange(orphaned_, true)) attempt([&] { be_orphaned(); });
      std::array<pollfd, 4> polled{pollfd{ended, POLLIN, 0}, pollfd{signal_fd_.fd(), POLLIN, 0},
                                   pollfd{keeper_.fd(), POLLIN, 0},
                                   pollfd{fs_.space_monitor().news_fd(), POLLIN, 0}};
      if (::poll(polled.data(), polled.size(), -1) < 0) {
        if (errno == EINTR) continue;
        throw Error{errno, "poll"};
      }
      if (polled[0].revents != 0) return;
      // A server that lacks memory, threads or descriptors for it goes on serving.
      if (polled[2].revents != 0) attempt([&] { listen(); });
      if (polled[1].revents != 0) attempt([&] { serve_signal(); });
      if (polled[3].revents != 0) attempt([&] { pass_on_watermarks(); });
    }
  }

 private:
  void listen() {
    if (const std::optional<Packet> said = keeper_.listen()) {
      if (said->say == Say::hand_over) hand_over(config_, fs_, session_);
      for (const int fd : said->descriptors) {
        if (said->say == Say::log_file && config_.use_log) config_.use_log(fd);
        ::close(fd);
      }
      if (said->say == Say::log_file) config_.log->info("log: reopened");
    }
  }

  void be_orphaned() {
    fs_.note_orphaned(keeper_);
    config_.log->error(
        "keeper: {}: is gone; this server goes on, but nothing comes after it if it dies: `cowfs "
        "restart {}` brings a new keeper",
        config_.mount_point, config_.mount_point);
  }

  void serve_signal() {
    signalfd_siginfo info{};
    if (::read(signal_fd_.fd(), &info, sizeof(info)) != sizeof(info)) return;
    if (info.ssi_signo == SIGHUP) {
      keeper_.say(Say::reopen_log);
      if (keeper_.fd() >= 0) return;
      config_.log->error(
          "log: not reopened, since the keeper is gone: `cowfs restart {}` brings a new one",
          config_.mount_point);
    } else if (keeper_.fd() >= 0) {
      keeper_.say(Say::terminate);
    } else {
      // Only the keeper may unmount, and only commands look for who uses the mount.
      config_.log->error(
          "signal {}: {}: not unmounted, since the keeper is gone: `cowfs umount {}` unmounts, "
          "`cowfs restart {}` brings a new keeper",
          info.ssi_signo, config_.mount_point, config_.mount_point, config_.mount_point);
    }
  }

  void pass_on_watermarks() {
    for (const WatermarkNews& news : fs_.space_monitor().take_news()) {
      if (config_.on_watermark.empty()) continue;
      keeper_.say(Say::watermark, 0, news.text());
      if (keeper_.fd() < 0) config_.log->error("on_watermark: not run: the keeper is gone");
    }
  }

  const ServerConfig& config_;
  KeeperLink& keeper_;
  FileSystem& fs_;
  Session& session_;
  bool orphaned_ = false;  // the keeper is gone, and that is known
  const Descriptor signal_fd_;
};

/// Returns once the kernel has taken in the reply to FUSE_INIT.
void wait_until_usable(const std::string& mount_point) {
  struct stat root {};
  if (::stat(mount_point.c_str(), &root) != 0) throw Error{errno, "use " + mount_point};
}

}  // namespace

bool serve(ServerConfig config, KeeperLink& keeper) {
  prepare_process(*config.log);
  const sigset_t signals = block_signals();

  if (keeper.takes_over()) {
    // What was meant for the first server.
    config.store.create = false;
    config.store.accept_changed_base = false;
    config.store.pool.reset();  // the store has a link to it
    config.store.pool_size.reset();
  }
  config.store.mount = config.mount_point;
  config.store.log = config.log;
  config.store.live = std::make_shared<LiveMemory>(keeper.held("live").value());
  config.store.lock_held = {keeper.held("lock-directory"), keeper.held("lock-file")};
  Sandbox sandbox;
  config.store.confine = [&](const Base* base) {
    std::vector<int> files;
    for (const auto& file : base->files()) files.push_back(file->file.fd());
    sandbox = enter_sandbox(files, config.store.directory, *config.log);
  };
  config.store.apart = [&](const std::function<std::optional<BaseRow>()>& look) {
    return look_apart(config.store.directory, look);
  };
  Store store(config.store);
  // A mount that fails leaves nothing behind.
  struct Unmake {
    Store& store;
    bool armed = true;
    ~Unmake() {
      if (armed) store.unmake_if_new();
    }
  } unmake{store};
  keeper.hold("lock-directory", store.lock().directory_fd());
  keeper.hold("lock-file", store.lock().file_fd());
  uint64_t lost_writes = 0;
  const Descriptor ended(::eventfd(0, EFD_CLOEXEC), "eventfd");
  {
    std::list<BaseWatch> watches;
    for (const auto& file : store.base().files()) {
      const std::string path = file->file.path();
      watches.emplace_back(
          file->file,
          [&store, path](const std::string& what) { store.note_base_written(path, what); },
          *config.log);
    }
    FileSystem fs(store, config, sandbox);
    fs.note_keeper(keeper);
    const std::vector<std::string> options = mount_options(config, store);
    const bool takes_over = keeper.takes_over();
    const int connection = takes_over ? keeper.held("connection").value() : keeper.mount(options);
    Session session(connection, options, operations(), &fs, config.store.live);
    session.agree(config.resend);
    fs.note_resend(session.resend());
    session.start(FileSystem::threads(), [&ended] {
      const uint64_t one = 1;
      static_cast<void>(!::write(ended.fd(), &one, sizeof(one)));
    });
    if (!takes_over) wait_until_usable(config.mount_point);
    const size_t images = store.image_count();
    config.log->info("{}: {}: base {}, store {}, {} {}", takes_over ? "taken over" : "mounted",
                     config.mount_point, store.facts().base_path, store.facts().directory, images,
                     images == 1 ? "image" : "images");
    unmake.armed = false;
    keeper.say(Say::ready);
    Control(config, keeper, signals, fs, session).run(ended.fd());
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
