#include "fs/space_monitor.h"

#include <spawn.h>
#include <spdlog/logger.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>

#include "store/error.h"

extern char** environ;

namespace cowfs {
namespace {

constexpr std::chrono::seconds kInterval{2};

/// Starts `command` by sh(1) with these variables added, out of reach of the server's signals.
/// 0 or an errno value.
int start(const std::string& command, std::vector<std::string> variables, pid_t& pid) {
  // The server is spared when memory is short; what it starts need not be.
  std::string script = "echo 0 2>/dev/null >/proc/self/oom_score_adj; " + command;
  std::string shell = "sh";
  std::string flag = "-c";
  std::array<char*, 4> arguments{shell.data(), flag.data(), script.data(), nullptr};
  std::vector<char*> environment;
  for (char** each = environ; *each != nullptr; ++each) environment.push_back(*each);
  for (std::string& variable : variables) environment.push_back(variable.data());
  environment.push_back(nullptr);

  posix_spawnattr_t attributes{};
  ::posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
  const int code =
      ::posix_spawn(&pid, "/bin/sh", nullptr, &attributes, arguments.data(), environment.data());
  ::posix_spawnattr_destroy(&attributes);
  return code;
}

}  // namespace

SpaceMonitor::SpaceMonitor(Config config, spdlog::logger& log)
    : config_(std::move(config)), log_(log), marks_(config_.marks), thread_([this] { run(); }) {}

SpaceMonitor::~SpaceMonitor() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  thread_.join();
}

std::optional<unsigned> SpaceMonitor::reached() {
  const std::lock_guard lock(mutex_);
  return marks_.reached();
}

void SpaceMonitor::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    lock.unlock();
    attempt([this] { look(); });
    attempt([this] { collect_commands(); });
    lock.lock();
    stop_.wait_for(lock, kInterval, [this] { return stopping_; });
  }
}

void SpaceMonitor::look() {
  unsigned used = 0;
  try {
    used = used_percent(space_at(config_.store));
  } catch (const Error& error) {
    log_.debug("space: {}", error.what());
    return;
  }
  std::vector<unsigned> news;
  {
    const std::lock_guard lock(mutex_);
    news = marks_.update(used);
  }
  for (const unsigned mark : news) {
    log_.warn("space: {}: the file system is {} % full (watermark {} %)", config_.store, used,
              mark);
    if (!config_.command.empty()) run_command(mark, used);
  }
}

void SpaceMonitor::run_command(unsigned mark, unsigned used) {
  pid_t pid = 0;
  const int code =
      start(config_.command,
            {"COWFS_MOUNT=" + config_.mount, "COWFS_STORE=" + config_.store,
             "COWFS_WATERMARK=" + std::to_string(mark), "COWFS_USED=" + std::to_string(used)},
            pid);
  if (code != 0) {
    log_.error("on_watermark: not run: {}", error_text(code));
    return;
  }
  commands_.push_back(pid);
}

void SpaceMonitor::collect_commands() {
  std::erase_if(commands_, [this](pid_t pid) {
    int status = 0;
    const pid_t ended = ::waitpid(pid, &status, WNOHANG);
    if (ended == 0) return false;
    if (ended != pid) return true;
    if (WIFSIGNALED(status)) {
      log_.warn("on_watermark: the command was ended by signal {}", WTERMSIG(status));
    } else if (WEXITSTATUS(status) != 0) {
      log_.warn("on_watermark: the command failed: exit status {}", WEXITSTATUS(status));
    }
    return true;
  });
}

}  // namespace cowfs
