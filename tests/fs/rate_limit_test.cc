#include "fs/rate_limit.h"

#include <gtest/gtest.h>

namespace cowfs {
namespace {

TEST(RateLimit, TheFirstOfASubjectPassesAndRepetitionsAreHeldBack) {
  RateLimit limit;
  EXPECT_EQ(limit.pass("read: image 2"), 0U);
  EXPECT_EQ(limit.pass("read: image 2"), std::nullopt);
  EXPECT_EQ(limit.pass("read: image 3"), 0U);
}

TEST(RateLimit, ManySubjectsDoNotGrowWithoutBound) {
  RateLimit limit;
  for (int i = 0; i < 5000; ++i) EXPECT_EQ(limit.pass(std::to_string(i)), 0U);
}

}  // namespace
}  // namespace cowfs
