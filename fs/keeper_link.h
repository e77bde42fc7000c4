#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "fs/keeper_protocol.h"

namespace cowfs {

/// A server's end of what it has to say to its keeper, and what it got from it. Not thread-safe.
class KeeperLink {
 public:
  /// Takes the socket over and waits for the keeper's first packet. EPROTONOSUPPORT, with name and
  /// version, if what is handed over has another form than this program knows.
  explicit KeeperLink(int socket);
  KeeperLink(const KeeperLink&) = delete;
  KeeperLink& operator=(const KeeperLink&) = delete;
  ~KeeperLink();

  /// A descriptor that the keeper holds; none if it holds none of that name. It stays the link's.
  [[nodiscard]] std::optional<int> held(const std::string& name) const;
  [[nodiscard]] const std::map<std::string, int>& all_held() const { return held_; }
  /// Whether a server before this one was mounted.
  [[nodiscard]] bool takes_over() const { return held("connection").has_value(); }

  [[nodiscard]] pid_t keeper() const { return keeper_; }  ///< 0: it is gone
  [[nodiscard]] uint64_t restarts() const { return restarts_; }
  [[nodiscard]] int64_t last_restart_ns() const { return last_restart_ns_; }  ///< 0: never

  /// Has the keeper mount, and returns the connection's descriptor, which is the link's. Throws the
  /// Error that the keeper got.
  int mount(const std::vector<std::string>& options);
  /// Has the keeper keep a copy of the descriptor for the next server.
  void hold(const std::string& name, int fd);
  void say(Say what, int32_t code = 0, const std::string& text = "");

  /// To be polled; `listen` is due when it is readable. -1: the keeper is gone.
  [[nodiscard]] int fd() const { return socket_; }
  /// What the keeper says; none if it is gone, from then on. The descriptors are the caller's.
  std::optional<Packet> listen();

 private:
  void lose();

  int socket_;
  pid_t keeper_ = 0;
  uint64_t restarts_ = 0;
  int64_t last_restart_ns_ = 0;
  std::map<std::string, int> held_;
};

}  // namespace cowfs
