#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace cowfs {

/// How a server that takes over gets what was read and not answered.
enum class Resend : uint32_t {
  unknown,
  kernel,  ///< the kernel sends it again (Linux 6.9)
  slots,   ///< it lies in RequestSlots
};

/// FUSE_INIT as the kernel sent it and as it was answered: by it a server that takes over an
/// agreed connection makes libfuse know what was agreed. Lies in ServerNotes.
struct SavedInit {
  std::array<std::byte, 512> request;
  std::array<std::byte, 256> reply;
  uint32_t request_size;  ///< bytes; 0: there was none
  uint32_t reply_size;    ///< bytes; 0: it was not answered
  Resend resend;          ///< the last that is written
};

}  // namespace cowfs
