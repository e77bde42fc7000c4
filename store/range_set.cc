#include "store/range_set.h"

#include <algorithm>
#include <iterator>

namespace cowfs {

void RangeSet::add(uint64_t offset, uint64_t length) {
  if (length == 0) return;
  uint64_t end = offset + length;
  auto next = ends_.upper_bound(offset);
  if (next != ends_.begin() && std::prev(next)->second >= offset) {
    --next;
    offset = next->first;
  }
  while (next != ends_.end() && next->first <= end) {
    end = std::max(end, next->second);
    next = ends_.erase(next);
  }
  ends_.emplace_hint(next, offset, end);
}

void RangeSet::remove(uint64_t offset, uint64_t length) {
  if (length == 0) return;
  const uint64_t end = offset + length;
  auto at = ends_.upper_bound(offset);
  if (at != ends_.begin() && std::prev(at)->second > offset) --at;
  while (at != ends_.end() && at->first < end) {
    const auto [start, stop] = *at;
    at = ends_.erase(at);
    if (start < offset) ends_.emplace_hint(at, start, offset);
    if (stop > end) at = ends_.emplace_hint(at, end, stop);
    if (stop > end) break;
  }
}

std::pair<bool, uint64_t> RangeSet::run(uint64_t offset, uint64_t limit) const {
  const auto next = ends_.upper_bound(offset);
  if (next != ends_.begin() && std::prev(next)->second > offset) {
    return {true, std::min(limit, std::prev(next)->second - offset)};
  }
  return {false, next == ends_.end() ? limit : std::min(limit, next->first - offset)};
}

std::vector<std::pair<uint64_t, uint64_t>> RangeSet::ranges() const {
  std::vector<std::pair<uint64_t, uint64_t>> all;
  all.reserve(ends_.size());
  for (const auto& [start, end] : ends_) all.emplace_back(start, end - start);
  return all;
}

}  // namespace cowfs
