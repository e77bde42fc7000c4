#include "fs/watermark_command.h"

#include <spawn.h>
#include <spdlog/logger.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <sstream>
#include <utility>

#include "store/error.h"

extern char** environ;

namespace cowfs {
namespace {

/// 0 or an errno value.
int start(const std::string& command, std::vector<std::string> variables, pid_t& pid) {
  // The keeper is spared when memory is short; what it starts need not be.
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
  posix_spawn_file_actions_t actions{};
  ::posix_spawn_file_actions_init(&actions);
  // In the foreground the keeper stays where it was started, and the command would hold that.
  ::posix_spawn_file_actions_addchdir_np(&actions, "/");
  const int code =
      ::posix_spawn(&pid, "/bin/sh", &actions, &attributes, arguments.data(), environment.data());
  ::posix_spawn_file_actions_destroy(&actions);
  ::posix_spawnattr_destroy(&attributes);
  return code;
}

}  // namespace

std::string WatermarkNews::text() const {
  return std::to_string(mark) + " " + std::to_string(used);
}

WatermarkNews WatermarkNews::from(const std::string& text) {
  WatermarkNews news{.mark = 0, .used = 0};
  std::istringstream(text) >> news.mark >> news.used;
  return news;
}

WatermarkCommand::WatermarkCommand(Config config, spdlog::logger& log)
    : config_(std::move(config)), log_(log) {}

void WatermarkCommand::run(const WatermarkNews& news) {
  if (config_.command.empty()) return;
  pid_t pid = 0;
  const int code = start(
      config_.command,
      {"COWFS_MOUNT=" + config_.mount, "COWFS_STORE=" + config_.store,
       "COWFS_WATERMARK=" + std::to_string(news.mark), "COWFS_USED=" + std::to_string(news.used)},
      pid);
  if (code != 0) {
    log_.error("on_watermark: not run: {}", error_text(code));
    return;
  }
  running_.push_back(pid);
}

void WatermarkCommand::note_ended(pid_t pid, int status) {
  if (std::erase(running_, pid) == 0) return;
  if (WIFSIGNALED(status)) {
    log_.warn("on_watermark: the command was ended by signal {}", WTERMSIG(status));
  } else if (WEXITSTATUS(status) != 0) {
    log_.warn("on_watermark: the command failed: exit status {}", WEXITSTATUS(status));
  }
}

}  // namespace cowfs
