#include "store/range_lock.h"

#include <algorithm>

namespace cowfs {

bool RangeLock::overlaps(ChunkRange range) const {
  return std::any_of(held_.begin(), held_.end(), [range](const Held& held) {
    return held.range.first < range.last && range.first < held.range.last;
  });
}

RangeLock::Guard RangeLock::take(ChunkRange range) {
  const uint64_t id = next_id_++;
  held_.push_back({range, id});
  return {this, id};
}

RangeLock::Guard RangeLock::lock(ChunkRange range) {
  std::unique_lock lock(mutex_);
  unlocked_.wait(lock, [&] { return !overlaps(range); });
  return take(range);
}

RangeLock::Guard RangeLock::try_lock(ChunkRange range) {
  const std::lock_guard lock(mutex_);
  if (overlaps(range)) return {nullptr, 0};
  return take(range);
}

void RangeLock::when_free(ChunkRange range, std::function<void()> action) {
  {
    const std::lock_guard lock(mutex_);
    if (overlaps(range)) {
      waiting_.push_back({range, std::move(action)});
      return;
    }
  }
  action();
}

void RangeLock::unlock(uint64_t id) {
  std::vector<std::function<void()>> ready;
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(held_, [id](const Held& held) { return held.id == id; });
    std::erase_if(waiting_, [&](Waiting& waiting) {
      if (overlaps(waiting.range)) return false;
      ready.push_back(std::move(waiting.action));
      return true;
    });
  }
  unlocked_.notify_all();
  for (const std::function<void()>& action : ready) action();
}

}  // namespace cowfs
