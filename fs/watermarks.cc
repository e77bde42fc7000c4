#include "fs/watermarks.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

namespace cowfs {

unsigned used_percent(const Space& space) {
  const uint64_t used = space.total - std::min(space.total, space.free);
  const uint64_t all = used + space.available;
  if (all == 0) return 100;
  return static_cast<unsigned>(
      std::ceil(100.0L * static_cast<long double>(used) / static_cast<long double>(all)));
}

Watermarks::Watermarks(std::vector<unsigned> marks, unsigned reached) : marks_(std::move(marks)) {
  std::sort(marks_.begin(), marks_.end());
  static_cast<void>(update(reached));
}

std::vector<unsigned> Watermarks::update(unsigned used) {
  while (reached_ > 0 && used + 1 < marks_[reached_ - 1]) --reached_;
  std::vector<unsigned> news;
  for (; reached_ < marks_.size() && used >= marks_[reached_]; ++reached_) {
    news.push_back(marks_[reached_]);
  }
  return news;
}

std::optional<unsigned> Watermarks::reached() const {
  if (reached_ == 0) return std::nullopt;
  return marks_[reached_ - 1];
}

}  // namespace cowfs
