#include "fs/server_process.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "fs/keeper_protocol.h"
#include "store/error.h"

namespace cowfs {
namespace {

[[noreturn]] void be_server(int socket, const KeeperConfig& config, const Program& program,
                            const sigset_t& signals) {
  // dup2(2) of a descriptor to itself would leave it to be closed.
  if (socket == kServerSocket) {
    ::fcntl(kServerSocket, F_SETFD, 0);
  } else {
    ::dup2(socket, kServerSocket);
  }
  ::setsid();
  if (::chdir("/") != 0) ::_exit(127);  // it always works
  if (!config.foreground) {
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, stream);
  }
  ::sigprocmask(SIG_SETMASK, &signals, nullptr);
  if (config.instead_of_program) ::_exit(config.instead_of_program(kServerSocket));
  program.execute(config.arguments);
  const int code = errno;
  // The program that was to say why it fails is this one still.
  attempt([&] {
    static_cast<void>(send_packet(
        kServerSocket,
        {.say = Say::failed, .code = code, .text = program.why_not(code), .descriptors = {}}));
  });
  ::_exit(127);
}

}  // namespace

ServerProcess start_server_process(const KeeperConfig& config, const Program& program,
                                   const sigset_t& signals) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    throw Error{errno, "start the server"};
  }
  const pid_t child = ::fork();
  if (child == 0) be_server(ends[1], config, program, signals);
  const int code = errno;
  ::close(ends[1]);
  if (child < 0) {
    ::close(ends[0]);
    throw Error(code, "start the server");
  }
  return {.pid = child, .socket = ends[0]};
}

}  // namespace cowfs
