#pragma once

#include <cstdint>

namespace cowfs {

// Of linux/fuse.h since Linux 6.9, newer than the header of Debian 12.

/// The bit of a request's number that says that it was read before (FUSE_UNIQUE_RESEND).
constexpr uint64_t kSentAgain = uint64_t{1} << 63;
/// The bit of fuse_init_in.flags2 by which the kernel says that it can (FUSE_HAS_RESEND).
constexpr uint32_t kHasResend = 1U << (39 - 32);

/// Tells the kernel to send again what was read from the connection and not answered
/// (FUSE_NOTIFY_RESEND). Nobody may be reading or answering. 0 or an errno value; ENODEV or EPERM
/// where the connection has ended.
int ask_to_send_again(int connection);

}  // namespace cowfs
