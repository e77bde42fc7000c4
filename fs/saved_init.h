#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace cowfs {

/// FUSE_INIT as the kernel sent it and as it was answered: by it a server that takes over an
/// agreed connection makes libfuse know what was agreed. Lies in LiveMemory::notes.
struct SavedInit {
  std::array<std::byte, 512> request;
  std::array<std::byte, 256> reply;
  uint32_t request_size;  ///< bytes; 0: there was none
  uint32_t reply_size;    ///< bytes; the last that is written
};

}  // namespace cowfs
