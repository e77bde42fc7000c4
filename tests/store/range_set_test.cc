#include "store/range_set.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace cowfs {
namespace {

using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;

TEST(RangeSet, TouchingAndOverlappingRangesBecomeOne) {
  RangeSet set;
  set.add(10, 5);
  set.add(20, 5);
  EXPECT_EQ(set.ranges(), (Ranges{{10, 5}, {20, 5}}));
  set.add(15, 5);
  EXPECT_EQ(set.ranges(), (Ranges{{10, 15}}));
  set.add(12, 2);
  EXPECT_EQ(set.ranges(), (Ranges{{10, 15}}));
  set.add(0, 100);
  EXPECT_EQ(set.ranges(), (Ranges{{0, 100}}));
}

TEST(RangeSet, RunTellsInsideFromOutside) {
  RangeSet set;
  set.add(10, 5);
  EXPECT_EQ(set.run(0, 100), std::pair(false, uint64_t{10}));
  EXPECT_EQ(set.run(0, 3), std::pair(false, uint64_t{3}));
  EXPECT_EQ(set.run(12, 100), std::pair(true, uint64_t{3}));
  EXPECT_EQ(set.run(15, 100), std::pair(false, uint64_t{100}));
  EXPECT_EQ(set.run(10, 2), std::pair(true, uint64_t{2}));
}

TEST(RangeSet, RemovingCutsRangesAndSplitsThem) {
  RangeSet set;
  set.add(10, 10);
  set.add(30, 10);
  set.remove(0, 10);
  set.remove(20, 10);
  set.remove(12, 0);
  EXPECT_EQ(set.ranges(), (Ranges{{10, 10}, {30, 10}}));
  set.remove(12, 2);
  EXPECT_EQ(set.ranges(), (Ranges{{10, 2}, {14, 6}, {30, 10}}));
  set.remove(18, 15);
  EXPECT_EQ(set.ranges(), (Ranges{{10, 2}, {14, 4}, {33, 7}}));
  set.remove(0, 100);
  EXPECT_TRUE(set.empty());
}

TEST(RangeSet, AddingNothingAddsNothing) {
  RangeSet set;
  set.add(10, 0);
  EXPECT_TRUE(set.empty());
}

TEST(RangeSet, AgreesWithASetOfNumbers) {
  std::mt19937_64 random(1);
  RangeSet set;
  std::set<uint64_t> plain;
  for (int round = 0; round < 200; ++round) {
    const uint64_t offset = random() % 300;
    const uint64_t length = random() % 8;
    set.add(offset, length);
    for (uint64_t i = 0; i < length; ++i) plain.insert(offset + i);
    for (uint64_t at = 0; at < 310;) {
      const auto [inside, count] = set.run(at, 310 - at);
      ASSERT_GT(count, 0U);
      for (uint64_t i = 0; i < count; ++i) ASSERT_EQ(plain.contains(at + i), inside);
      at += count;
    }
  }
}

}  // namespace
}  // namespace cowfs
