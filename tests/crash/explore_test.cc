// A bounded exploration: seeds that are always the same, and one that is new each time.

#include <gtest/gtest.h>

#include <iostream>
#include <random>

#include "tests/crash/campaign.h"

namespace cowfs::crash {
namespace {

/// For one of the explorations below: as much as a fast machine does in that time, and no more time
/// on a slow one.
constexpr double kMostSeconds = 40;

void expect_clean(const Options& options) {
  const Report report = explore(options);
  std::cout << report.text();
  EXPECT_GT(report.distinct, 0U);
  EXPECT_EQ(report.violations, "");
}

TEST(Explore, FindsNothingWithKnownSeeds) {
  for (const uint64_t seed : {1, 2, 3}) {
    expect_clean({.seed = seed, .seconds = kMostSeconds, .traces = 150});
  }
}

TEST(Explore, FindsNothingWithANewSeed) {
  expect_clean({.seed = std::random_device()(), .seconds = 30});
}

TEST(Explore, FindsNothingWhereCallsFail) {
  expect_clean({.seed = 1, .seconds = kMostSeconds, .traces = 100, .faults = true});
  expect_clean({.seed = std::random_device()(), .seconds = 15, .faults = true});
}

}  // namespace
}  // namespace cowfs::crash
