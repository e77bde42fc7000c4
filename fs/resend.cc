#include "fs/resend.h"

#include <linux/fuse.h>
#include <unistd.h>

#include <cerrno>

namespace cowfs {

int ask_to_send_again(int connection) {
  constexpr int kNotifyResend = 7;
  const fuse_out_header notify{.len = sizeof(notify), .error = kNotifyResend, .unique = 0};
  return ::write(connection, &notify, sizeof(notify)) == sizeof(notify) ? 0 : errno;
}

}  // namespace cowfs
