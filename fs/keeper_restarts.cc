// What a keeper does at a restart: of a server, of itself, and of one that was killed before it.

#include <fcntl.h>
#include <spdlog/logger.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "fs/adoption.h"
#include "fs/keeper_process.h"
#include "fs/keeper_reexec.h"
#include "fs/server_process.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr std::chrono::seconds kTimeToHandOver{5};

}  // namespace

/// The last step: until it the program before could still go on with all that it had.
void Keeper::go_on(const KeeperLegacy& legacy) {
  const KeeperLegacy::Process& process = legacy.process.value();
  server_ = process.server;
  socket_ = process.socket;
  is_ready_ = server_ != 0;
  given_up_ = process.given_up;
  state_->server = server_;
  state_->given_up = given_up_ ? 1 : 0;
  state_->asked = process.asked;
  // They came blocked.
  for (const int signal : kKeeperSignals) sigdelset(&old_signals_, signal);
  // Who looks at it finds the one or the other.
  if (::dup3(state_fd_, process.state, O_CLOEXEC) < 0)
    throw Error{errno, "show the keeper's state"};
  ::close(std::exchange(state_fd_, process.state));
  set_close_on_exec(legacy, true);
  for (const int fd : process.spent) ::close(fd);
  if (!process.failure.empty()) {
    refuse_replacement(process.failure);
    return;
  }
  config_.log->info("keeper: {}: process {} is cowfs {} now", config_.mount_point, ::getpid(),
                    COWFS_VERSION);
  report(true, "");
}

void Keeper::adopt() {
  config_.log->info("keeper: {}: process {} goes on for one that was killed, with another server",
                    config_.mount_point, ::getpid());
  end_process(orphan_);
  restart_asked_ = true;
  start_next_server();
}

void Keeper::end_restart(bool well, const std::string& why) {
  const std::string no_candidate = std::exchange(no_candidate_, "");
  if (!std::exchange(restart_asked_, false)) return;
  // Another server, but not of the program that was asked for.
  report(well && no_candidate.empty(), well ? no_candidate : why);
}

void Keeper::report(bool well, const std::string& why) {
  state_->message.fill('\0');
  why.copy(state_->message.data(), state_->message.size() - 1);
  state_->well = well ? 1 : 0;
  ++state_->asked;
}

void Keeper::hand_over() {
  restart_asked_ = true;
  if (server_ != 0 && !is_ready_) {
    // What it runs was chosen before: it is not what was asked for.
    hand_over_asked_ = true;
    return;
  }
  no_candidate_.clear();
  try {
    candidate_ = std::make_shared<const Program>(program_->path(), kServerSocket + 1);
  } catch (const Error& error) {
    config_.log->error("restart: {}: the program that runs is used again", error.what());
    candidate_ = program_;
    no_candidate_ = std::string("restarted, but by the program that ran before: ") + error.what() +
                    "; put the new one there, and restart once more";
  }
  if (server_ == 0) {
    given_up_ = false;
    start_next_server();
    return;
  }
  if (handing_over_) return;
  deadline_ = Clock::now() + kTimeToHandOver;
  // One that is dead already, or dying, is followed by another as soon as that is known.
  if (socket_ < 0) return;
  handing_over_ = true;
  say({.say = Say::hand_over, .code = 0, .text = {}, .descriptors = {}});
}

/// Nothing is under way that another program would have to know of.
bool Keeper::is_quiet() const {
  return (given_up_ || (is_ready_ && server_ != 0 && !handing_over_)) && !unmount_.under_way() &&
         !end_;
}

void Keeper::become_program_on_disk() {
  replacement_asked_ = false;
  try {
    become_program(Program(program_->path(), kServerSocket + 1),
                   {.held = held_,
                    .program = program_,
                    .restarts = restarts_,
                    .last_restart_ns = last_restart_ns_,
                    .orphan = -1,
                    .process = KeeperLegacy::Process{.mount_point = config_.mount_point,
                                                     .foreground = config_.foreground,
                                                     .server = server_,
                                                     .socket = socket_,
                                                     .given_up = given_up_,
                                                     .asked = state_->asked,
                                                     .state = state_fd_,
                                                     .claim = claim_,
                                                     .failure = ""}},
                   old_signals_);
  } catch (const Error& error) {
    refuse_replacement(error.what());
  }
}

void Keeper::refuse_replacement(const std::string& why) {
  config_.log->error("keeper: {}: {}; the old program goes on", config_.mount_point, why);
  report(false, "keeper not replaced: " + why + "; the old keeper goes on");
}

}  // namespace cowfs
