#include "fs/keeper_protocol.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "store/error.h"

namespace cowfs {
namespace {

constexpr size_t kMostText = 60 << 10;
constexpr size_t kMostDescriptors = 16;

struct Head {
  uint32_t say;
  int32_t code;
};

}  // namespace

bool send_packet(int socket, const Packet& packet) {
  if (packet.text.size() > kMostText || packet.descriptors.size() > kMostDescriptors) {
    throw Error(EMSGSIZE, "packet of keeper and server");
  }
  Head head{.say = static_cast<uint32_t>(packet.say), .code = packet.code};
  std::array<iovec, 2> pieces{iovec{&head, sizeof(head)},
                              iovec{const_cast<char*>(packet.text.data()), packet.text.size()}};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMostDescriptors * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  if (!packet.descriptors.empty()) {
    const size_t bytes = packet.descriptors.size() * sizeof(int);
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(bytes);
    cmsghdr* const rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(bytes);
    std::memcpy(CMSG_DATA(rights), packet.descriptors.data(), bytes);
  }
  while (::sendmsg(socket, &message, MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno == EPIPE || errno == ECONNRESET) return false;
    throw Error{errno, "say something to keeper or server"};
  }
  return true;
}

std::optional<Packet> receive_packet(int socket) {
  Head head{};
  std::string text(kMostText, '\0');
  std::array<iovec, 2> pieces{iovec{&head, sizeof(head)}, iovec{text.data(), text.size()}};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMostDescriptors * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t count = 0;
  while ((count = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC)) < 0) {
    // Said once where the other side ended without having heard all; what it said comes after it.
    if (errno == EINTR || errno == ECONNRESET) continue;
    throw Error{errno, "listen to keeper or server"};
  }
  if (count == 0) return std::nullopt;
  Packet packet{
      .say = static_cast<Say>(head.say), .code = head.code, .text = {}, .descriptors = {}};
  for (cmsghdr* at = CMSG_FIRSTHDR(&message); at != nullptr; at = CMSG_NXTHDR(&message, at)) {
    if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) continue;
    packet.descriptors.resize((at->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    std::memcpy(packet.descriptors.data(), CMSG_DATA(at), packet.descriptors.size() * sizeof(int));
  }
  const bool whole = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
  if (count < static_cast<ssize_t>(sizeof(head)) || !whole) {
    for (const int fd : packet.descriptors) ::close(fd);
    throw Error(EPROTO, "listen to keeper or server");
  }
  text.resize(static_cast<size_t>(count) - sizeof(head));
  packet.text = std::move(text);
  return packet;
}

}  // namespace cowfs
