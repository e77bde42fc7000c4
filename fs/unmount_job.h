#pragma once

#include <signal.h>
#include <spdlog/fwd.h>
#include <sys/types.h>

#include <string>

#include "fs/program.h"

namespace cowfs {

/// `cowfs umount` as a keeper runs it that was told to end: it goes on keeping meanwhile, and what
/// the command says goes to the log. Not thread-safe.
class UnmountJob {
 public:
  explicit UnmountJob(spdlog::logger& log) : log_(log) {}
  UnmountJob(const UnmountJob&) = delete;
  UnmountJob& operator=(const UnmountJob&) = delete;
  ~UnmountJob();

  /// Does nothing if one is under way. `signals` are blocked in the child. Throws Error.
  void start(const Program& program, const std::string& mount_point, const sigset_t& signals);
  /// Whether the child runs, or something that it said is still to be logged.
  [[nodiscard]] bool under_way() const { return child_ != 0 || output_ >= 0; }

  /// To be polled; `listen` is due when it is readable. -1: there is nothing to hear.
  [[nodiscard]] int fd() const { return output_; }
  void listen();
  /// A child of this process has ended.
  void note_end(pid_t child);

 private:
  spdlog::logger& log_;
  pid_t child_ = 0;
  int output_ = -1;
  std::string text_;  // what it has said, but for whole lines
};

}  // namespace cowfs
