#include "store/base_watch.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

#include "store/error.h"

// Both the lease and inotify announce themselves by SIGIO, sent to the watch's thread alone, which
// blocks it and waits for it. So no other thread needs to know. The signal says only that it is
// time to look; what has happened is asked of the descriptors, and a signal too many does no harm.

namespace cowfs {
namespace {

std::string by_descriptor(const File& file) { return "/proc/self/fd/" + std::to_string(file.fd()); }

/// What `fd` announces goes to the calling thread.
void send_signals_here(int fd) {
  const f_owner_ex owner{.type = F_OWNER_TID, .pid = ::gettid()};
  ::fcntl(fd, F_SETOWN_EX, &owner);
}

sigset_t watched_signal() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGIO);
  return signals;
}

}  // namespace

BaseWatch::BaseWatch(const File& file, Alarm alarm, spdlog::logger& log,
                     std::chrono::milliseconds pause)
    : alarm_(std::move(alarm)),
      log_(log),
      pause_(pause),
      // Not by its name, which may lead to another file by now. The lease belongs to the open file
      // description, which is to be shared with nobody.
      file_(by_descriptor(file), O_RDONLY),
      events_(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK), "inotify_init1"),
      name_(file.path()),
      thread_([this] { run(); }) {
  started_.wait();
}

BaseWatch::~BaseWatch() {
  stopping_ = true;
  ::pthread_kill(thread_.native_handle(), SIGIO);
  thread_.join();
}

void BaseWatch::run() {
  const sigset_t signals = watched_signal();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  send_signals_here(file_.fd());
  send_signals_here(events_.fd());
  ::fcntl(events_.fd(), F_SETFL, O_ASYNC | O_NONBLOCK);
  arm();
  started_.count_down();

  using Clock = std::chrono::steady_clock;
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(pause_);
  const timespec pause{.tv_sec = seconds.count(),
                       .tv_nsec = std::chrono::nanoseconds(pause_ - seconds).count()};
  Clock::time_point pause_end = Clock::now() + pause_;
  while (!stopping_) {
    ::sigtimedwait(&signals, nullptr, &pause);
    if (way_ == Way::none) {
      if (Clock::now() >= pause_end) arm();
    } else if (seen()) {
      const bool lease = way_ == Way::lease;
      disarm();  // first of all: the writer waits for it
      writer_known_ = lease;
      pause_end = Clock::now() + pause_;
      attempt([&] { alarm_(lease ? "was opened for writing" : "was written to"); });
    }
  }
  disarm();
}

void BaseWatch::arm() {
  if (::fcntl(file_.fd(), F_SETLEASE, F_RDLCK) == 0) {
    way_ = Way::lease;
    writer_known_ = false;
    return;
  }
  if (errno == EAGAIN) {
    if (!std::exchange(writer_known_, true)) attempt([this] { alarm_("is open for writing"); });
    return;
  }
  const std::string why = error_text(errno);
  event_watch_ =
      ::inotify_add_watch(events_.fd(), by_descriptor(file_).c_str(), IN_MODIFY | IN_CLOSE_WRITE);
  if (event_watch_ < 0) {
    say_once("not watched for writers: no lease (" + why + "), no inotify (" + error_text(errno) +
             ")");
    return;
  }
  way_ = Way::events;
  say_once(
      "watched for writers by inotify, which sees only what is written under this name: no "
      "lease (" +
      why + ")");
}

bool BaseWatch::seen() {
  // A lease that somebody waits for is shown as what it is to become.
  if (way_ == Way::lease) return ::fcntl(file_.fd(), F_GETLEASE) != F_RDLCK;
  std::array<char, 4096> events{};
  return ::read(events_.fd(), events.data(), events.size()) > 0;
}

void BaseWatch::disarm() {
  if (way_ == Way::lease) ::fcntl(file_.fd(), F_SETLEASE, F_UNLCK);
  if (way_ == Way::events) {
    ::inotify_rm_watch(events_.fd(), event_watch_);
    while (seen()) {
    }
  }
  way_ = Way::none;
}

void BaseWatch::say_once(const std::string& what) {
  if (!std::exchange(said_, true)) log_.info("base {}: {}", name_, what);
}

}  // namespace cowfs
