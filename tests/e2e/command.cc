#include "tests/e2e/command.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <thread>

#ifndef COWFS_PROGRAM
#define COWFS_PROGRAM "build/cmd/cowfs"
#endif

namespace cowfs::e2e {
namespace {

constexpr uid_t kNobody = 65534;

[[noreturn]] void ThrowErrno(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

int ExitStatus(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

// Starts a program in a process group of its own (a Ctrl-C is for the test, which then cleans up)
// with the given descriptors as standard output and error.
pid_t Start(const Arguments& arguments, int out, int err, const RunOptions& options) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) {
    argv.push_back(const_cast<char*>(argument.c_str()));
  }
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid < 0) {
    ThrowErrno("fork");
  }
  if (pid > 0) {
    return pid;
  }
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  if (!options.environment.empty()) {
    putenv(const_cast<char*>(options.environment.c_str()));
  }
  if (!options.directory.empty() && chdir(options.directory.c_str()) != 0) {
    _exit(126);
  }
  if (options.as_nobody &&
      (setgroups(0, nullptr) != 0 || setresgid(kNobody, kNobody, kNobody) != 0 ||
       setresuid(kNobody, kNobody, kNobody) != 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)) {
    _exit(126);
  }
  execvp(argv[0], argv.data());
  _exit(127);
}

// Reads what there is; false at the end of the stream.
bool Drain(int fd, std::string& into) {
  std::array<char, 65536> buffer{};
  const ssize_t count = read(fd, buffer.data(), buffer.size());
  if (count > 0) {
    into.append(buffer.data(), static_cast<size_t>(count));
  }
  return count > 0 || (count < 0 && errno == EAGAIN);
}

struct Pipe {
  Pipe() {
    if (pipe2(ends, O_CLOEXEC) != 0) {
      ThrowErrno("pipe2");
    }
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  ~Pipe() {
    close(ends[0]);
    CloseWriter();
  }
  void CloseWriter() {
    if (ends[1] >= 0) {
      close(ends[1]);
      ends[1] = -1;
    }
  }
  int ends[2] = {-1, -1};
};

}  // namespace

Result Execute(const Arguments& arguments, const RunOptions& options) {
  Result result;
  for (const std::string& argument : arguments) {
    result.command += (result.command.empty() ? "" : " ") + argument;
  }
  Pipe out;
  Pipe err;
  const pid_t pid = Start(arguments, out.ends[1], err.ends[1], options);
  out.CloseWriter();
  err.CloseWriter();

  using Clock = std::chrono::steady_clock;
  auto deadline = Clock::now() + options.timeout;
  bool ended = false;
  std::array<pollfd, 2> streams{pollfd{out.ends[0], POLLIN, 0}, pollfd{err.ends[0], POLLIN, 0}};
  while (!ended || streams[0].fd >= 0 || streams[1].fd >= 0) {
    poll(streams.data(), streams.size(), 10);
    for (pollfd& stream : streams) {
      if (stream.fd >= 0 && stream.revents != 0 &&
          !Drain(stream.fd, stream.fd == out.ends[0] ? result.out : result.err)) {
        stream.fd = -1;
      }
    }
    int status = 0;
    if (!ended && waitpid(pid, &status, WNOHANG) == pid) {
      ended = true;
      result.status = ExitStatus(status);
      deadline = Clock::now() + std::chrono::seconds(2);
    }
    if (Clock::now() < deadline) {
      continue;
    }
    if (ended) {
      result.let_go = false;
      break;
    }
    result.timed_out = true;
    kill(-pid, SIGKILL);
    deadline = Clock::now() + std::chrono::seconds(5);
  }
  return result;
}

Result Shell(const std::string& script, const RunOptions& options) {
  return Execute({"sh", "-euc", script}, options);
}

Result Cowfs(const Arguments& arguments, const RunOptions& options) {
  Arguments all{Program().string()};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return Execute(all, options);
}

Path Program() {
  const char* const program = std::getenv("COWFS");
  return std::filesystem::absolute(program != nullptr && *program != '\0' ? program
                                                                          : COWFS_PROGRAM);
}

std::string Must(const Result& result) {
  if (result.status != 0) {
    throw std::runtime_error(result.command.substr(0, 300) + ": " +
                             (result.timed_out ? "timed out, " : "") + "exit status " +
                             std::to_string(result.status) + "\n" + result.err + result.out);
  }
  return result.out;
}

Json CowfsJson(Arguments arguments) {
  arguments.emplace_back("--json");
  return Json::parse(Must(Cowfs(arguments)));
}

std::string Quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) {
    quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  }
  return quoted + "'";
}

Background::Background(const Arguments& arguments, const Path& out, const Path& err) {
  const int out_fd = open(out.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const int err_fd = open(err.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  pid_ = Start(arguments, out_fd, err_fd, {});
  close(out_fd);
  close(err_fd);
  undo_ = Undo([pid = pid_] { kill(-pid, SIGKILL); });
}

Background::~Background() {
  if (!ended_) {
    undo_.Run();
    waitpid(pid_, nullptr, 0);
  }
}

void Background::Signal(int signal) const { kill(pid_, signal); }

int Background::Wait(std::chrono::seconds timeout) {
  int status = 0;
  if (!Eventually([&] { return waitpid(pid_, &status, WNOHANG) == pid_; }, timeout)) {
    throw std::runtime_error("a process in the background does not end");
  }
  ended_ = true;
  undo_.Cancel();
  return ExitStatus(status);
}

void SleepMilliseconds(int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

}  // namespace cowfs::e2e
