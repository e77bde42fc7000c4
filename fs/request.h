#pragma once

#include <cstdint>

namespace cowfs {

/// The request of the kernel that this thread is working on.
struct Request {
  uint64_t number = 0;  ///< unique within the connection; 0: none
  bool again = false;   ///< it was read before, by a server that did not come to answer it
};

/// Of a thread of Session. What is handed to another thread has to take it along.
Request current_request();

}  // namespace cowfs
