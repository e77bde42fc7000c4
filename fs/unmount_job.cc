#include "fs/unmount_job.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "store/error.h"

namespace cowfs {

UnmountJob::~UnmountJob() {
  if (output_ >= 0) ::close(output_);
}

void UnmountJob::start(const Program& program, const std::string& mount_point,
                       const sigset_t& signals) {
  if (child_ != 0) return;
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) throw Error{errno, "unmount"};
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], STDERR_FILENO);
    ::fcntl(STDERR_FILENO, F_SETFL, 0);
    ::sigprocmask(SIG_SETMASK, &signals, nullptr);
    program.execute({"cowfs", "umount", mount_point});
    ::_exit(127);
  }
  ::close(ends[1]);
  if (output_ >= 0) ::close(output_);
  output_ = ends[0];
  child_ = std::max(child, 0);
}

void UnmountJob::listen() {
  std::array<char, 4096> buffer{};
  const ssize_t count = ::read(output_, buffer.data(), buffer.size());
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  text_.append(buffer.data(), static_cast<size_t>(std::max<ssize_t>(count, 0)));
  for (size_t end = 0; (end = text_.find('\n')) != std::string::npos;) {
    log_.warn("{}", text_.substr(0, end));
    text_.erase(0, end + 1);
  }
  if (count > 0) return;
  ::close(output_);
  output_ = -1;
  text_.clear();
}

void UnmountJob::note_end(pid_t child) {
  if (child == child_) child_ = 0;
}

}  // namespace cowfs
