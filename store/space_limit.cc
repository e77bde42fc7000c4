#include "store/space_limit.h"

#include <cerrno>
#include <string>

#include "store/error.h"

namespace cowfs {

std::optional<uint64_t> SpaceLimit::get() const {
  const uint64_t limit = limit_.load();
  if (limit == kNone) return std::nullopt;
  return limit;
}

SpaceLimit::Claim SpaceLimit::claim(uint64_t bytes, const std::function<uint64_t()>& own_bytes) {
  if (limit_.load() == kNone) return {};
  std::unique_lock lock(mutex_);
  while (true) {
    const uint64_t limit = limit_.load();
    const uint64_t own = own_bytes();
    if (bytes > limit || own > limit - bytes) {
      throw Error::with_message(
          ENOSPC, "its limit of private space is reached: " + std::to_string(limit) + " bytes");
    }
    if (claimed_ == 0 || own + claimed_ + bytes <= limit) break;
    changed_.wait(lock);
  }
  claimed_ += bytes;
  return {this, bytes};
}

void SpaceLimit::give_back(uint64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    claimed_ -= bytes;
  }
  changed_.notify_all();
}

}  // namespace cowfs
