#pragma once

#include <cstdint>
#include <string>

namespace cowfs::crash {

/// Many traces, one after the other, in several processes. Ends at the first violation, at the
/// first of the limits, or at SIGINT.
struct Options {
  uint64_t seed = 0;
  double seconds = 0;   ///< 0: no limit
  uint64_t traces = 0;  ///< 0: no limit
  unsigned jobs = 2;
  bool faults = false;  ///< calls fail in the traces
};

struct Report {
  uint64_t seed = 0;
  uint64_t traces = 0;
  uint64_t states = 0;    ///< built
  uint64_t distinct = 0;  ///< by content
  double seconds = 0;
  std::string violations = {};  ///< for people; empty if there was none

  [[nodiscard]] std::string text() const;
};

Report explore(const Options& options);

/// Only the trace with this seed, as a report of a violation names it.
Report replay(uint64_t seed, bool faults);

}  // namespace cowfs::crash
