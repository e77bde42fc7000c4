#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <vector>

#include "store/check.h"

namespace cowfs {

/// What damage says of the leaks beside it: where the catalog may be another's, or an older one,
/// what it does not know is no leak, since the right one would miss it. Likewise of a single layer
/// whose map cannot be as it is.
class Doubt {
 public:
  void note(const Finding& finding);

  /// Nothing at all is to be repaired.
  [[nodiscard]] bool about_all() const { return all_; }
  /// No space of this layer is to be given back.
  [[nodiscard]] bool about(uint64_t layer) const { return all_ || layers_.contains(layer); }

 private:
  bool all_ = false;
  std::set<uint64_t> layers_;
};

/// A check is run twice where there is something to repair: the first time looks only, since what
/// is found last may cast doubt on what was found first. `run` gets other options each time.
CheckResult look_then_repair(
    const CheckOptions& options,
    const std::function<CheckResult(const CheckOptions&, const Doubt&)>& run);

}  // namespace cowfs
