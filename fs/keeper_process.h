#pragma once

#include <signal.h>
#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "fs/keeper.h"
#include "fs/keeper_legacy.h"
#include "fs/keeper_protocol.h"
#include "fs/keeper_state.h"
#include "fs/program.h"
#include "fs/refusal.h"
#include "fs/unmount_job.h"
#include "fs/watermark_command.h"

namespace cowfs {

/// Those that a keeper waits for; blocked, also in the moment in which it becomes another program.
constexpr std::array kKeeperSignals{SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD};

/// The keeper of a mount at work, see keep() in fs/keeper.h. What serves restarts is in
/// keeper_restarts.cc, the rest in keeper.cc. Not thread-safe.
class Keeper {
 public:
  Keeper(const KeeperConfig& config, const std::function<void()>& ready,
         const KeeperLegacy& legacy);
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;
  ~Keeper();

  int run();

 private:
  using Clock = std::chrono::steady_clock;

  void go_on(const KeeperLegacy& legacy);
  void adopt();
  void start_server();
  void start_next_server();
  void send_start() const;
  /// To the server. Where that fails it is logged, and the server's end or the clock does the rest:
  /// nothing that a server is or does is to end its keeper.
  void say(const Packet& packet) const;
  void listen();
  void handle(Packet& packet);
  void mount(const std::string& options);
  void tune() const;
  void reopen_log() const;
  void collect_children();
  void server_ended(int status);
  void server_failed(const std::string& why, bool crashed);
  /// Counts one more.
  bool crashes_too_often();
  void give_up();
  /// Tells who waits for it that the mount is as it will be.
  void announce();
  void handle_signal(int signal);
  void start_unmount();
  void hand_over();
  [[nodiscard]] bool is_quiet() const;
  void become_program_on_disk();
  /// Tells who asked for a restart what came of it.
  void end_restart(bool well, const std::string& why);
  void refuse_replacement(const std::string& why);
  void report(bool well, const std::string& why);
  void check_time();
  [[nodiscard]] int wait_ms() const;

  const KeeperConfig& config_;
  const std::function<void()>& ready_;
  bool announced_ = false;  // `ready_` was called
  sigset_t signals_{};
  sigset_t old_signals_{};
  bool io_flusher_ = false;
  int state_fd_ = -1;
  KeeperState* state_ = nullptr;              // for others to look at
  bool restart_asked_ = false;                // and not yet come to an end
  bool hand_over_asked_ = false;              // of the server that is becoming ready
  std::string no_candidate_;                  // why the program on disk was not taken for it
  bool replacement_asked_ = false;            // of this program
  std::map<std::string, int> held_;           // for the next server, by name
  int claim_ = -1;                            // see claim_mount
  std::shared_ptr<const Program> program_;    // the one that works
  std::shared_ptr<const Program> candidate_;  // one that has yet to become ready
  int connection_ = -1;
  int orphan_ = -1;  // the pidfd of a server to be ended

  pid_t server_ = 0;  // 0: none
  int socket_ = -1;
  bool is_ready_ = false;
  bool was_ready_ = false;  // some server was
  bool handing_over_ = false;
  bool killed_for_time_ = false;
  bool given_up_ = false;
  bool asked_to_end_ = false;
  std::optional<Packet> failure_;  // what the server said of its own
  std::optional<int> end_;         // the exit status of the whole
  Clock::time_point deadline_ = Clock::time_point::max();
  std::deque<Clock::time_point> crashes_;
  uint64_t restarts_ = 0;
  int64_t last_restart_ns_ = 0;
  UnmountJob unmount_;
  Refusal refusal_;
  WatermarkCommand watermark_command_;
};

}  // namespace cowfs
