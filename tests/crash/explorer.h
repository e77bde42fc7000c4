#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>

#include "tests/crash/scenario.h"

namespace cowfs::crash {

/// Explores single scenarios in a directory of its own, which goes away with it.
class Explorer {
 public:
  explicit Explorer(std::string directory);
  Explorer(const Explorer&) = delete;
  Explorer& operator=(const Explorer&) = delete;
  ~Explorer();

  /// Runs it and opens up to about `cuts` times three states of it. Returns what went wrong.
  std::optional<std::string> explore(const Scenario& scenario, unsigned cuts);
  /// The shortest scenario found within some seconds that still fails, and how.
  std::pair<Scenario, std::string> shrink(const Scenario& scenario, const std::string& violation);

  [[nodiscard]] uint64_t states() const { return states_; }
  /// Hashes of the distinct states.
  [[nodiscard]] const std::unordered_set<uint64_t>& hashes() const { return hashes_; }

 private:
  const std::string directory_;
  uint64_t states_ = 0;
  std::unordered_set<uint64_t> hashes_;
};

}  // namespace cowfs::crash
