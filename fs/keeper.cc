// States of the keeper
//
//   starting      the first server opens the store, and asks to be mounted
//   serving       a server has said that it is ready
//   taking over   a server was started again and is not ready yet
//   handing over  a server was asked to end, for another one
//   given up      no server: requests are read here and fail
//   ending        the mount is gone, the server says so and ends
//
// A server that is taking over has seconds to become ready. If it does not, or dies, it counts as a
// crash of the program that it runs; where that is a new one, the one before is used again.

#include "fs/keeper.h"

#include <poll.h>
#include <signal.h>
#include <spdlog/logger.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <utility>

#include "fs/keeper_claim.h"
#include "fs/keeper_process.h"
#include "fs/mount.h"
#include "fs/server_process.h"
#include "fs/tuning.h"
#include "fs/unmount_job.h"
#include "fs/watermark_command.h"
#include "store/descriptor.h"
#include "store/error.h"
#include "store/live_memory.h"

namespace cowfs {
namespace {

constexpr std::chrono::seconds kTimeToBecomeReady{10};
constexpr std::chrono::milliseconds kTimeToTryAgain{500};
constexpr size_t kMostCrashes = 5;
constexpr std::chrono::seconds kCrashesWithin{10};

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return "was killed by signal " + std::to_string(WTERMSIG(status));
  return "ended with exit status " + std::to_string(WEXITSTATUS(status));
}

}  // namespace

Keeper::Keeper(const KeeperConfig& config, const std::function<void()>& ready,
               const KeeperLegacy& legacy)
    : config_(config),
      ready_(ready),
      held_(legacy.held),
      orphan_(legacy.orphan),
      was_ready_(legacy.program != nullptr),
      restarts_(legacy.restarts),
      last_restart_ns_(legacy.last_restart_ns),
      unmount_(*config.log),
      watermark_command_(
          {.command = config.on_watermark, .mount = config.mount_point, .store = config.store},
          *config.log) {
  io_flusher_ = prepare_process(*config.log);
  sigemptyset(&signals_);
  for (const int signal : kKeeperSignals) sigaddset(&signals_, signal);
  ::sigprocmask(SIG_BLOCK, &signals_, &old_signals_);
  // A keeper that came back may have no file at its path any more.
  candidate_ = legacy.process
                   ? legacy.program
                   : std::make_shared<const Program>(Program::own_path(), kServerSocket + 1);
  program_ = legacy.program ? legacy.program : candidate_;
  // Before others can see it: until then it is none.
  if (held_.count("live") == 0) held_["live"] = LiveMemory::make();
  claim_ = legacy.process ? legacy.process->claim : claim_mount(held_["live"]);
  ::prctl(PR_SET_NAME, KeeperState::kName, 0, 0, 0);
  state_fd_ = make_keeper_state();
  state_ = &map_keeper_state(state_fd_);
  if (config.mount_point.size() >= state_->mount_point.size()) {
    throw Error(ENAMETOOLONG, "mount point " + config.mount_point);
  }
  config.mount_point.copy(state_->mount_point.data(), config.mount_point.size());
  if (const auto found = held_.find("connection"); found != held_.end())
    connection_ = found->second;
  if (legacy.process) {
    go_on(legacy);
    return;
  }
  const int text = ::memfd_create("cowfs-config", MFD_CLOEXEC);
  if (text < 0) throw Error{errno, "keep the configuration"};
  held_["config"] = text;
  if (::write(text, config.server.data(), config.server.size()) !=
      static_cast<ssize_t>(config.server.size())) {
    throw Error{errno, "keep the configuration"};
  }
}

Keeper::~Keeper() {
  // A mount that came to nothing: without its connection it would be there, and dead.
  if (connection_ >= 0 && !was_ready_) unmount_mount_point(config_.mount_point, MNT_DETACH);
  ::munmap(state_, sizeof(KeeperState));
  ::close(state_fd_);
  ::close(claim_);
  if (orphan_ >= 0) ::close(orphan_);
  if (socket_ >= 0) ::close(socket_);
  for (const auto& [name, fd] : held_) ::close(fd);
  ::sigprocmask(SIG_SETMASK, &old_signals_, nullptr);
}

void Keeper::start_server() {
  const ServerProcess started = start_server_process(config_, *candidate_, old_signals_);
  is_ready_ = false;
  handing_over_ = false;
  killed_for_time_ = false;
  failure_.reset();
  if (socket_ >= 0) ::close(socket_);
  socket_ = started.socket;
  server_ = started.pid;
  state_->server = started.pid;
  state_->given_up = 0;
  if (was_ready_) deadline_ = Clock::now() + kTimeToBecomeReady;
  send_start();
}

void Keeper::send_start() const {
  Packet packet{.say = Say::start, .code = kHandOverVersion, .text = {}, .descriptors = {}};
  packet.text = std::string(kHandOverName) + "\nkeeper " + std::to_string(::getpid()) +
                "\nrestarts " + std::to_string(restarts_) + "\nlast_restart " +
                std::to_string(last_restart_ns_) + "\n";
  for (const auto& [name, fd] : held_) {
    packet.text += "holds " + name + "\n";
    packet.descriptors.push_back(fd);
  }
  say(packet);
}

void Keeper::say(const Packet& packet) const {
  if (socket_ < 0) return;
  try {
    static_cast<void>(send_packet(socket_, packet));  // its end is seen by its death
  } catch (const Error& error) {
    config_.log->error("server: {}: process {}: {}", config_.mount_point, server_, error.what());
  }
}

void Keeper::mount(const std::string& options) {
  std::vector<std::string> list;
  for (size_t at = 0; at < options.size();) {
    const size_t end = std::min(options.find('\0', at), options.size());
    list.push_back(options.substr(at, end - at));
    at = end + 1;
  }
  Packet answer{.say = Say::mounted, .code = 0, .text = {}, .descriptors = {}};
  try {
    connection_ = mount_fuse(config_.mount_point, list);
    held_["connection"] = connection_;
    answer.descriptors.push_back(connection_);
  } catch (const Error& error) {
    answer.say = Say::not_mounted;
    answer.code = error.code();
    answer.text = error.what();
  }
  say(answer);
}

void Keeper::tune() const {
  if (!config_.tune || ::geteuid() != 0) return;
  // Asks nobody: what the kernel knows of the mount is enough.
  struct statx status {};
  if (::statx(AT_FDCWD, config_.mount_point.c_str(), AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
              STATX_INO, &status) != 0) {
    return;
  }
  tune_bdi(makedev(status.stx_dev_major, status.stx_dev_minor), io_flusher_ || config_.tune_always,
           *config_.log);
}

void Keeper::reopen_log() const {
  Packet packet{.say = Say::log_file, .code = 0, .text = {}, .descriptors = {}};
  if (const int fd = config_.reopen_log ? config_.reopen_log() : -1; fd >= 0) {
    packet.descriptors.push_back(fd);
  }
  // One that starts opens it itself, and would take this for an answer.
  if (is_ready_) say(packet);
}

void Keeper::listen() {
  try {
    if (std::optional<Packet> packet = receive_packet(socket_)) {
      handle(*packet);
      return;
    }
    // It dies, or has; SIGCHLD tells more.
  } catch (const std::exception& error) {
    // One that says what nobody understands is not well, and its death is safe at any moment.
    config_.log->error("server: {}: process {}: {}: killed", config_.mount_point, server_,
                       error.what());
    if (server_ > 0) ::kill(server_, SIGKILL);
  }
  ::close(std::exchange(socket_, -1));
}

void Keeper::handle(Packet& packet) {
  switch (packet.say) {
    case Say::hold:
      for (const int fd : packet.descriptors) {
        if (const auto old = held_.find(packet.text); old != held_.end()) ::close(old->second);
        held_[packet.text] = fd;
      }
      return;
    case Say::mount:
      if (connection_ < 0) mount(packet.text);
      break;
    case Say::ready:
      is_ready_ = true;
      deadline_ = Clock::time_point::max();
      program_ = candidate_;
      if (!hand_over_asked_) end_restart(true, "");
      if (!was_ready_) {
        was_ready_ = true;
        tune();
      }
      announce();
      if (std::exchange(hand_over_asked_, false)) hand_over();
      break;
    case Say::failed:
      failure_ = packet;
      break;
    case Say::ended:
      end_ = packet.code;
      break;
    case Say::terminate:
      start_unmount();
      break;
    case Say::reopen_log:
      reopen_log();
      break;
    case Say::watermark:
      watermark_command_.run(WatermarkNews::from(packet.text));
      break;
    default:
      break;
  }
  for (const int fd : packet.descriptors) ::close(fd);
}

void Keeper::collect_children() {
  int status = 0;
  for (pid_t pid = 0; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
    unmount_.note_end(pid);
    watermark_command_.note_ended(pid, status);
    if (pid != server_) continue;
    server_ = 0;
    state_->server = 0;
    // What it said before is still to be heard.
    while (socket_ >= 0) listen();
    server_ended(status);
  }
}

void Keeper::server_ended(int status) {
  deadline_ = Clock::time_point::max();
  if (end_) return;
  if (!was_ready_) {
    if (failure_) throw Error::with_message(failure_->code, failure_->text);
    throw Error::with_message(
        ECHILD, "the server " + how_it_ended(status) + " before the file system was usable");
  }
  if (handing_over_) {
    config_.log->info("server: {}: handed over", config_.mount_point);
    start_next_server();
    return;
  }
  // SIGKILL comes from outside. Who sends it again and again is not to take the disks away by it.
  const bool crashed = killed_for_time_ || !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL;
  server_failed(failure_ ? failure_->text : how_it_ended(status), crashed);
}

void Keeper::server_failed(const std::string& why, bool crashed) {
  if (!is_ready_ && candidate_ != program_) {
    const std::string what = "the new program, " + candidate_->path() +
                             ", did not become ready: " + why + "; the old one goes on";
    config_.log->error("server: {}: {}", config_.mount_point, what);
    end_restart(false, "not restarted: " + what);
    candidate_ = program_;
  } else {
    config_.log->error("server: {}: {}; started again", config_.mount_point, why);
    if (crashed && crashes_too_often()) {
      give_up();
      return;
    }
  }
  start_next_server();
}

bool Keeper::crashes_too_often() {
  const Clock::time_point now = Clock::now();
  crashes_.push_back(now);
  while (now - crashes_.front() > kCrashesWithin) crashes_.pop_front();
  return crashes_.size() >= kMostCrashes;
}

void Keeper::start_next_server() {
  ++restarts_;
  last_restart_ns_ = std::chrono::duration_cast<std::chrono::nanoseconds>(
                         std::chrono::system_clock::now().time_since_epoch())
                         .count();
  try {
    start_server();
  } catch (const Error& error) {
    --restarts_;
    config_.log->error("server: {}: {}", config_.mount_point, error.what());
    // Memory, processes or descriptors may come back.
    deadline_ = Clock::now() + kTimeToTryAgain;
    if (crashes_too_often()) give_up();
  }
}

void Keeper::announce() {
  if (std::exchange(announced_, true)) return;
  ready_();
  if (asked_to_end_) start_unmount();
}

void Keeper::give_up() {
  config_.log->critical(
      "server: {}: crashed {} times in {} seconds, and is not started again: all requests fail "
      "with "
      "EIO; look at the log, then `cowfs restart {}` or unmount",
      config_.mount_point, kMostCrashes, kCrashesWithin.count(), config_.mount_point);
  crashes_.clear();
  deadline_ = Clock::time_point::max();
  given_up_ = true;
  state_->given_up = 1;
  hand_over_asked_ = false;
  end_restart(false, "not restarted: the server dies again and again; see the log");
  Refusal::begin(connection_, held_.at("live"));
  announce();
}

void Keeper::start_unmount() {
  try {
    unmount_.start(*program_, config_.mount_point, old_signals_);
  } catch (const Error& error) {
    config_.log->error("{}: not unmounted: {}", config_.mount_point, error.what());
  }
}

void Keeper::handle_signal(int signal) {
  switch (signal) {
    case SIGCHLD:
      collect_children();
      break;
    case SIGHUP:
      reopen_log();
      break;
    case SIGUSR1:
      hand_over();
      break;
    case SIGUSR2:
      replacement_asked_ = true;
      break;
    default:
      config_.log->info("signal {}: unmounting {}", signal, config_.mount_point);
      asked_to_end_ = true;
      if (was_ready_) start_unmount();
  }
}

void Keeper::check_time() {
  if (Clock::now() < deadline_) return;
  if (server_ == 0) {
    start_next_server();
    return;
  }
  // Death is safe at any moment.
  config_.log->error("server: {}: process {} {} in time: killed", config_.mount_point, server_,
                     handing_over_ ? "does not hand over" : "does not become ready");
  deadline_ = Clock::time_point::max();
  killed_for_time_ = !handing_over_;
  ::kill(server_, SIGKILL);
}

int Keeper::wait_ms() const {
  if (deadline_ == Clock::time_point::max()) return -1;
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - Clock::now()).count();
  return static_cast<int>(std::max<int64_t>(left, 0)) + 1;
}

int Keeper::run() {
  // To be there when memory is short. Not inherited by the servers.
  static_cast<void>(::mlockall(MCL_CURRENT | MCL_FUTURE));
  const Descriptor signal_fd(::signalfd(-1, &signals_, SFD_CLOEXEC | SFD_NONBLOCK), "signalfd");
  if (orphan_ >= 0) {
    adopt();
  } else if (server_ == 0 && !given_up_) {
    start_server();
  } else {
    announce();
    collect_children();  // who died while this became another program
  }
  while (!end_ || server_ != 0) {
    std::array<pollfd, 4> polled{pollfd{signal_fd.fd(), POLLIN, 0}, pollfd{socket_, POLLIN, 0},
                                 pollfd{given_up_ ? connection_ : -1, POLLIN, 0},
                                 pollfd{unmount_.fd(), POLLIN, 0}};
    if (::poll(polled.data(), polled.size(), wait_ms()) < 0) {
      if (errno == EINTR || errno == ENOMEM) continue;
      throw Error{errno, "poll"};
    }
    if (polled[1].revents != 0) listen();
    // Unmounted, it is over; what was not committed is lost.
    if (polled[2].revents != 0 && !refusal_.answer(connection_)) end_ = 1;
    if (polled[3].revents != 0) unmount_.listen();
    for (signalfd_siginfo info{}; ::read(signal_fd.fd(), &info, sizeof(info)) == sizeof(info);) {
      handle_signal(static_cast<int>(info.ssi_signo));
    }
    check_time();
    if (replacement_asked_ && is_quiet()) become_program_on_disk();
  }
  return *end_;
}

int keep(const KeeperConfig& config, const std::function<void()>& ready,
         const KeeperLegacy& legacy) {
  bool is_ready = false;
  const std::function<void()> note_ready = [&] {
    is_ready = true;
    ready();
  };
  try {
    return Keeper(config, note_ready, legacy).run();
  } catch (const std::exception& error) {
    // Nobody else is told from then on.
    if (is_ready) {
      config.log->critical("keeper: {}: {}: it ends; `cowfs restart {}` brings another",
                           config.mount_point, error.what(), config.mount_point);
    }
    throw;
  }
}

}  // namespace cowfs
