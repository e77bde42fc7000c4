#include "store/descriptor.h"

#include <sys/resource.h>

namespace cowfs {

bool is_among_last(int fd) {
  constexpr rlim_t last = 24;
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
         static_cast<rlim_t>(fd) + last >= limit.rlim_cur;
}

}  // namespace cowfs
