#pragma once

#include <fuse_lowlevel.h>

#include <cerrno>
#include <exception>
#include <new>
#include <string_view>

#include "fs/file_system.h"
#include "store/error.h"

namespace cowfs {

inline FileSystem& file_system(fuse_req_t request) {
  return *static_cast<FileSystem*>(fuse_req_userdata(request));
}

/// Whether an errno tells of trouble below, rather than of what the caller asked for.
inline bool is_trouble(int code) {
  return code == EIO || code == ENOSPC || code == EDQUOT || code == EUCLEAN || code == ENOMEM ||
         code == EMFILE || code == ENFILE || code == EROFS || code == EBUSY;
}

/// Runs an operation and makes its exception the reply: the only translation from exception to
/// errno. The operation sends its own reply as the last thing that it does.
template <typename Operation>
void answer(fuse_req_t request, const char* name, uint64_t inode, const Operation& operation) {
  int code = EIO;
  try {
    operation();
    return;
  } catch (const Error& error) {
    code = error.code();
    if (is_trouble(code)) {
      attempt([&] { file_system(request).log_error(name, inode, error.what()); });
    }
    // What is damaged is told in the log. Who cannot open an image is a person or a command, that
    // can tell this from a failing disk; who reads and writes is a machine, that knows EIO.
    if (code == EUCLEAN && std::string_view(name) != "open") code = EIO;
  } catch (const std::bad_alloc&) {
    code = ENOMEM;
  } catch (const std::exception& error) {
    attempt([&] { file_system(request).log_error(name, inode, error.what()); });
  }
  fuse_reply_err(request, code);
}

}  // namespace cowfs
