#include "fs/keeper_link.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <sstream>

#include "store/error.h"

namespace cowfs {

KeeperLink::KeeperLink(int socket) : socket_(socket) {
  ::fcntl(socket_, F_SETFD, FD_CLOEXEC);
  const std::optional<Packet> packet = receive_packet(socket_);
  if (!packet) throw Error::with_message(EPIPE, "take over: the keeper is gone");
  std::istringstream lines(packet->text);
  std::string name;
  std::getline(lines, name);
  if (packet->say != Say::start || name != kHandOverName || packet->code != kHandOverVersion) {
    throw Error::with_message(EPROTONOSUPPORT, "take over: the keeper speaks '" + name +
                                                   "' version " + std::to_string(packet->code) +
                                                   ", this program '" + kHandOverName +
                                                   "' version " + std::to_string(kHandOverVersion) +
                                                   "; mount anew for it");
  }
  size_t next = 0;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string key;
    words >> key;
    if (key == "keeper") words >> keeper_;
    if (key == "restarts") words >> restarts_;
    if (key == "last_restart") words >> last_restart_ns_;
    if (key == "holds" && next < packet->descriptors.size()) {
      words >> name;
      held_[name] = packet->descriptors[next++];
    }
  }
}

KeeperLink::~KeeperLink() {
  for (const auto& [name, fd] : held_) ::close(fd);
  lose();
}

std::optional<int> KeeperLink::held(const std::string& name) const {
  const auto found = held_.find(name);
  return found == held_.end() ? std::nullopt : std::optional(found->second);
}

int KeeperLink::mount(const std::vector<std::string>& options) {
  std::string text;
  for (const std::string& option : options) text += option + '\0';
  say(Say::mount, 0, text);
  std::optional<Packet> answer = receive_packet(socket_);
  if (!answer) throw Error::with_message(EPIPE, "mount: the keeper is gone");
  if (answer->say != Say::mounted || answer->descriptors.size() != 1) {
    throw Error::with_message(answer->code, answer->text);
  }
  return held_["connection"] = answer->descriptors.front();
}

void KeeperLink::hold(const std::string& name, int fd) {
  if (socket_ < 0) return;
  if (!send_packet(socket_, {.say = Say::hold, .code = 0, .text = name, .descriptors = {fd}})) {
    lose();
  }
}

void KeeperLink::say(Say what, int32_t code, const std::string& text) {
  if (socket_ < 0) return;
  if (!send_packet(socket_, {.say = what, .code = code, .text = text, .descriptors = {}})) lose();
}

std::optional<Packet> KeeperLink::listen() {
  std::optional<Packet> packet = receive_packet(socket_);
  if (!packet) lose();
  return packet;
}

void KeeperLink::lose() {
  if (socket_ >= 0) ::close(socket_);
  socket_ = -1;
  keeper_ = 0;
}

}  // namespace cowfs
