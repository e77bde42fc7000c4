#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace cowfs {

/// A set of offsets as ranges that neither touch nor overlap. Not thread-safe.
class RangeSet {
 public:
  /// Adds [offset, offset + length).
  void add(uint64_t offset, uint64_t length);
  /// Takes [offset, offset + length) out.
  void remove(uint64_t offset, uint64_t length);
  void clear() { ends_.clear(); }

  [[nodiscard]] bool empty() const { return ends_.empty(); }
  /// Whether `offset` is in the set, and for how many offsets from it on, at most `limit` > 0, the
  /// answer is the same.
  [[nodiscard]] std::pair<bool, uint64_t> run(uint64_t offset, uint64_t limit) const;
  /// (offset, length) of each range, in order.
  [[nodiscard]] std::vector<std::pair<uint64_t, uint64_t>> ranges() const;

 private:
  std::map<uint64_t, uint64_t> ends_;  // by start
};

}  // namespace cowfs
