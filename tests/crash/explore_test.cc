// A bounded exploration: seeds that are always the same, and one that is new each time.

#include <gtest/gtest.h>

#include <cstdio>
#include <iostream>
#include <random>

#include "tests/crash/campaign.h"
#include "tests/crash/disk.h"
#include "tests/crash/faults.h"

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

// A sector of which a half was written is neither what it was nor what it was to be, and no disk
// leaves such a one: the explorer would find what is not there.
TEST(Faults, HalfATransferEndsWhereASectorDoes) {
  std::FILE* const file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  Faults faults("/");
  faults.arm({.call = 1, .code = 0, .lasting = true});
  for (const uint64_t length : {1, 400, 1024, 2289, 100'000}) {
    FileCall call{
        .kind = FileCall::Kind::write, .fd = fileno(file), .offset = 38'671, .length = length};
    EXPECT_EQ(faults.apply(call), std::nullopt);
    EXPECT_GT(call.length, 0U);
    EXPECT_TRUE(call.length == length || (call.offset + call.length) % kSector == 0) << length;
    EXPECT_EQ(call.length < length, length >= 1024) << length;
  }
  std::fclose(file);
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
