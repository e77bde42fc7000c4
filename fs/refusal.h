#pragma once

#include <cstddef>
#include <vector>

namespace cowfs {

/// Answers the requests of a FUSE connection that has no server with EIO: better an error than to
/// wait for ever. Its memory is allocated up front.
class Refusal {
 public:
  Refusal();

  /// Takes up what a server has read and not answered: asks the kernel for it, or looks into the
  /// LiveMemory that `live` is the file of. Never throws.
  static void begin(int connection, int live);
  /// Reads one request, which is there, and answers it. False if the connection has ended.
  [[nodiscard]] bool answer(int connection);

 private:
  std::vector<std::byte> request_;
};

}  // namespace cowfs
