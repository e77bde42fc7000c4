#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace cowfs {

/// What keeper and server say to each other, over a socket pair of packets.
enum class Say : uint32_t {
  // The keeper says:
  start = 1,    ///< first of all; the text is a Start, with the descriptors that it names
  mounted,      ///< answers `mount`, with the connection's descriptor
  not_mounted,  ///< answers `mount`: code and message
  hand_over,    ///< answer what you have read, and end
  log_file,     ///< the log was opened again: with its descriptor, if it has one
  // The server says:
  hold = 100,  ///< keep this descriptor for the next server; the text is its name
  mount,       ///< the store is open: mount with these options, each ended by a NUL
  ready,       ///< the file system is usable
  failed,      ///< before `ready`: code (errno) and message; it ends
  ended,       ///< the mount is gone and the store closed; code is the exit status of the whole
  terminate,   ///< a signal asked for the end
  reopen_log,  ///< another asked for that
  watermark,   ///< run the command for it; the text is a WatermarkNews
};

struct Packet {
  Say say;
  int32_t code = 0;
  std::string text;
  std::vector<int> descriptors;  ///< of who has the packet: to be closed by him
};

/// The version of the packets, of what is handed over with `start`, and of what it is called. A
/// server refuses another.
constexpr int kHandOverVersion = 1;
constexpr const char* kHandOverName = "cowfs hand-over";

/// False if the other end is closed. Throws Error where it cannot be said. The descriptors stay the
/// caller's.
bool send_packet(int socket, const Packet& packet);
/// Waits for one; none if the other end is closed. Throws Error, EPROTO if it makes no sense.
std::optional<Packet> receive_packet(int socket);

}  // namespace cowfs
