#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "store/host_fs.h"

namespace cowfs {

/// How full a file system is, in percent from 0 to 100, as df(1) has it: what is left to root alone
/// does not count, and a part counts as a whole.
unsigned used_percent(const Space& space);

/// Which marks (percent) a filling file system has passed. Each counts once, until it was left by
/// more than a percent.
class Watermarks {
 public:
  /// In any order. Those up to `reached` are reached already.
  explicit Watermarks(std::vector<unsigned> marks, unsigned reached = 0);

  /// The marks that `used` percent has newly reached, the lowest first.
  [[nodiscard]] std::vector<unsigned> update(unsigned used);
  /// The highest that is reached.
  [[nodiscard]] std::optional<unsigned> reached() const;

 private:
  std::vector<unsigned> marks_;
  size_t reached_ = 0;  // that many of the lowest
};

}  // namespace cowfs
