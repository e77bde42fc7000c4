#include "cmd/daemon.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cmd/command.h"
#include "store/error.h"

namespace cowfs {
namespace {

std::vector<int> inherited;

std::vector<int> open_descriptors() {
  std::vector<int> list;
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir("/proc/self/fd"), ::closedir);
  if (directory == nullptr) return list;
  while (const dirent* entry = ::readdir(directory.get())) {
    const int fd = std::atoi(entry->d_name);
    if (fd > STDERR_FILENO && fd != ::dirfd(directory.get())) list.push_back(fd);
  }
  return list;
}

/// The child's words to its parent: one byte, what it is, and a message. Both ends close by
/// themselves.
class Relay {
 public:
  static constexpr char kReady = 'r';
  static constexpr char kFailed = 'f';

  Relay() {
    if (::pipe2(ends_.data(), O_CLOEXEC) != 0) throw Error{errno, "make a pipe"};
  }
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;
  ~Relay() {
    close_end(0);
    close_end(1);
  }

  void be_child() { close_end(0); }
  void be_parent() { close_end(1); }

  /// False if nobody listens any more.
  bool tell(char what, int code, const std::string& message) {
    const std::string text = what + std::to_string(code) + ' ' + message;
    const ssize_t written = ::write(ends_[1], text.data(), text.size());
    close_end(1);
    return written == static_cast<ssize_t>(text.size());
  }

  /// All that the child says, until it has closed its end.
  std::string listen() const {
    std::string text;
    std::array<char, 4096> buffer{};
    for (;;) {
      const ssize_t count = ::read(ends_[0], buffer.data(), buffer.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return text;
      text.append(buffer.data(), static_cast<size_t>(count));
    }
  }

 private:
  void close_end(size_t end) {
    if (ends_[end] >= 0) ::close(std::exchange(ends_[end], -1));
  }
  std::array<int, 2> ends_{-1, -1};
};

void leave_terminal() {
  ::setsid();
  if (::chdir("/") != 0) return;  // it always works
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) return;
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, stream);
  if (null > STDERR_FILENO) ::close(null);
}

int parent(Relay& relay, pid_t child) {
  relay.be_parent();
  const std::string text = relay.listen();
  if (text.starts_with(Relay::kReady)) return kDone;
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (text.starts_with(Relay::kFailed)) {
    const size_t space = text.find(' ');
    throw Error::with_message(std::stoi(text.substr(1, space - 1)), text.substr(space + 1));
  }
  throw Error::with_message(
      ECHILD, WIFSIGNALED(status)
                  ? "the server was killed by signal " + std::to_string(WTERMSIG(status)) +
                        " before the file system was usable"
                  : std::string("the server ended before the file system was usable"));
}

int child(Relay& relay, const std::function<int(const std::function<void()>& ready)>& serve,
          IfAbandoned if_abandoned) {
  relay.be_child();
  close_inherited_descriptors();
  if (if_abandoned == IfAbandoned::goes_on) ::setsid();
  bool is_ready = false;
  const auto fail = [&](int code, const std::string& message) {
    // After readiness the log has it, and nobody reads this.
    if (!is_ready) relay.tell(Relay::kFailed, code, message);
    return kFailed;
  };
  try {
    return serve([&] {
      is_ready = true;
      leave_terminal();
      struct sigaction ignore {};
      struct sigaction before {};
      ignore.sa_handler = SIG_IGN;
      ::sigaction(SIGPIPE, &ignore, &before);
      const bool heard = relay.tell(Relay::kReady, 0, "");
      ::sigaction(SIGPIPE, &before, nullptr);
      // Who asked for the mount gave up: so does the mount.
      if (!heard && if_abandoned == IfAbandoned::ends) ::kill(::getpid(), SIGTERM);
    });
  } catch (const Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::exception& error) {
    return fail(EIO, error.what());
  }
}

}  // namespace

void note_inherited_descriptors() { inherited = open_descriptors(); }

void close_inherited_descriptors() {
  for (const int fd : std::exchange(inherited, {})) ::close(fd);
}

int run_in_background(const std::function<int(const std::function<void()>& ready)>& serve,
                      IfAbandoned if_abandoned) {
  Relay relay;
  const pid_t pid = ::fork();
  if (pid < 0) throw Error{errno, "start the server"};
  return pid > 0 ? parent(relay, pid) : child(relay, serve, if_abandoned);
}

}  // namespace cowfs
