#pragma once

#include <random>
#include <string>
#include <vector>

#include "tests/crash/disk.h"

namespace cowfs::crash {

/// What is left, of what no sync had made durable when the power was cut.
enum class Left {
  nothing,
  everything,
  prefix,  ///< the first ones, and a part of the next
  some,    ///< each with even odds, whole or torn
  torn,    ///< each piece with even odds
  one,     ///< a single one
  all_but_one,
  one_file,  ///< all that was done to one file or directory
  all_but_one_file,
};
constexpr int kLeftKinds = 9;
std::string text_of(Left left);

/// A power cut: where in the run, and what is left. Builds the same state each time.
struct Cut {
  Position at;  ///< events before it have happened
  Left left;
  uint64_t seed;  ///< of the choice among those of its kind
};

/// Builds states from a recorded run. Cuts must not go backward.
class CutDisk {
 public:
  explicit CutDisk(const std::vector<Operation>& operations) : operations_(operations) {}

  [[nodiscard]] Disk state(const Cut& cut);
  /// The same in words: which of the undecided operations are left.
  [[nodiscard]] std::string describe(const Cut& cut);

 private:
  enum class Fate { none, whole, torn };

  void advance(Position at);
  [[nodiscard]] std::vector<Fate> fates(const Cut& cut, std::mt19937_64& random) const;

  const std::vector<Operation>& operations_;
  Position now_ = 0;
  size_t seen_ = 0;  // operations before now_
  Disk durable_;
  std::vector<const Operation*> undecided_;
};

}  // namespace cowfs::crash
