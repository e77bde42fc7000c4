// A keeper that becomes another program
//
// The process stays: its number, its child, who is the server, its descriptors, and signals that
// are blocked and pending. What else it knows stands in a file of memory:
//
//   cowfs keeper 1      name and version of the form
//   back 12             a descriptor: the program that was before
//   {"held":{...},...}  JSON
//
// In all versions the first two lines are as they are here, so that a program that does not know
// the version, or fails before it has taken over, can become the one before again, with all
// descriptors that it got. But mostly it does not come to that, since a program is tried in a child
// first (cowfs keep --probe), where it has to say that it knows the form: what is no cowfs, or an
// older one, would end the keeper.

#include "fs/keeper_reexec.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <nlohmann/json.hpp>
#include <sstream>

#include "fs/byte_json.h"
#include "fs/server_process.h"
#include "store/descriptor.h"
#include "store/error.h"

namespace cowfs {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kTimeToProve{5};

std::string descriptor_path(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

std::string form(const KeeperLegacy& legacy, int back) {
  const KeeperLegacy::Process& process = legacy.process.value();
  const nlohmann::json json{{"held", legacy.held},
                            {"program", legacy.program->fd()},
                            {"program_path", bytes_to_json(legacy.program->path())},
                            {"restarts", legacy.restarts},
                            {"last_restart_ns", legacy.last_restart_ns},
                            {"mount_point", bytes_to_json(process.mount_point)},
                            {"foreground", process.foreground},
                            {"server", process.server},
                            {"socket", process.socket},
                            {"given_up", process.given_up},
                            {"asked", process.asked},
                            {"state", process.state},
                            {"claim", process.claim}};
  return std::string(kHandDown) + "\nback " + std::to_string(back) + "\n" + json.dump() + "\n";
}

struct Form {
  std::string name;
  int back = -1;
  std::string json;
};

Form read_form(int memory) {
  std::string text;
  std::array<char, 4096> buffer{};
  for (ssize_t count = 0; (count = ::pread(memory, buffer.data(), buffer.size(),
                                           static_cast<off_t>(text.size()))) > 0;) {
    text.append(buffer.data(), static_cast<size_t>(count));
  }
  std::istringstream lines(text);
  Form form;
  std::string key;
  std::getline(lines, form.name);
  lines >> key >> form.back;
  if (key != "back") form.back = -1;
  lines.ignore();
  std::getline(lines, form.json);
  return form;
}

Form read_known_form(int memory) {
  Form form = read_form(memory);
  if (form.name == kHandDown) return form;
  throw Error::with_message(EPROTONOSUPPORT, "the keeper hands down '" + form.name +
                                                 "', this program knows '" + kHandDown + "'");
}

void set_close_on_exec(int fd, bool close) { ::fcntl(fd, F_SETFD, close ? FD_CLOEXEC : 0); }

/// What the child says, until it has closed its end. None if it is not through in time.
std::optional<std::string> listen_to(int output) {
  const auto deadline = Clock::now() + kTimeToProve;
  std::string text;
  std::array<char, 1024> buffer{};
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd polled{.fd = output, .events = POLLIN, .revents = 0};
    const int ready = left <= 0 ? 0 : ::poll(&polled, 1, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return std::nullopt;
    const ssize_t count = ::read(output, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return text;
    // Who has much to say is no keeper.
    if (text.size() < buffer.size()) text.append(buffer.data(), static_cast<size_t>(count));
  }
}

/// Error with the reason if the program does not say that it knows the form.
void require_keeper(const Program& program, int memory, const sigset_t& signals) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw Error{errno, "try the new program"};
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], STDOUT_FILENO);
    ::dup2(ends[1], STDERR_FILENO);
    set_close_on_exec(memory, false);
    ::sigprocmask(SIG_SETMASK, &signals, nullptr);
    program.execute({"cowfs", "keep", "--probe", std::to_string(memory)});
    const std::string why = program.why_not(errno);
    static_cast<void>(!::write(STDERR_FILENO, why.data(), why.size()));
    ::_exit(127);
  }
  const int code = errno;
  ::close(ends[1]);
  const Descriptor output(ends[0], "pipe");
  if (child < 0) throw Error(code, "try the new program");
  const std::optional<std::string> said = listen_to(output.fd());
  ::kill(child, SIGKILL);  // it has said what it had to say, or is late
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (!said) throw Error::with_message(ETIMEDOUT, "the new program says nothing");
  if (*said == std::string(kHandDown) + "\n") return;
  const std::string line = said->substr(0, said->find('\n'));
  throw Error::with_message(
      ENOEXEC, "the new program is no keeper for this mount" + (line.empty() ? "" : ": " + line));
}

}  // namespace

void set_close_on_exec(const KeeperLegacy& legacy, bool close) {
  const KeeperLegacy::Process& process = legacy.process.value();
  for (const auto& [name, fd] : legacy.held) set_close_on_exec(fd, close);
  for (const int fd : {process.socket, process.state, process.claim}) {
    if (fd >= 0) set_close_on_exec(fd, close);
  }
}

void become_program(const Program& next, const KeeperLegacy& legacy, const sigset_t& signals) {
  const Descriptor back(::open("/proc/self/exe", O_PATH | O_CLOEXEC), "find this program");
  const Descriptor memory(::memfd_create("cowfs-hand-down", MFD_CLOEXEC), "make memory");
  const std::string text = form(legacy, back.fd());
  if (::write(memory.fd(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    throw Error{errno, "make memory"};
  }
  require_keeper(next, memory.fd(), signals);
  const auto close_all = [&](bool close) {
    set_close_on_exec(legacy, close);
    for (const int fd : {legacy.program->fd(), back.fd(), memory.fd()}) {
      set_close_on_exec(fd, close);
    }
  };
  close_all(false);
  next.execute({"cowfs", "keep", std::to_string(memory.fd())});
  const int code = errno;
  close_all(true);
  throw Error::with_message(code, next.why_not(code));
}

KeeperLegacy inherit_keeper(int memory) {
  const Form form = read_known_form(memory);
  KeeperLegacy legacy;
  try {
    const nlohmann::json json = nlohmann::json::parse(form.json);
    const int program = json.at("program");
    legacy.held = json.at("held").get<std::map<std::string, int>>();
    legacy.program = std::make_shared<const Program>(bytes_from_json(json.at("program_path")),
                                                     kServerSocket + 1, descriptor_path(program));
    legacy.restarts = json.at("restarts");
    legacy.last_restart_ns = json.at("last_restart_ns");
    legacy.process = {.mount_point = bytes_from_json(json.at("mount_point")),
                      .foreground = json.at("foreground"),
                      .server = json.at("server"),
                      .socket = json.at("socket"),
                      .given_up = json.at("given_up"),
                      .asked = json.at("asked"),
                      .state = json.at("state"),
                      .claim = json.at("claim"),
                      .failure = "",
                      .spent = {program, form.back, memory}};
  } catch (const nlohmann::json::exception& error) {
    throw Error::with_message(EPROTO, std::string("what the keeper hands down: ") + error.what());
  }
  return legacy;
}

std::string known_form(int memory) { return read_known_form(memory).name; }

void go_back(int memory, const std::string& why) {
  const Form form = read_form(memory);
  if (form.back < 0) return;
  attempt([&] {
    const Program before("the program before", kServerSocket + 1, descriptor_path(form.back));
    before.execute({"cowfs", "keep", "--back", why, std::to_string(memory)});
  });
}

}  // namespace cowfs
