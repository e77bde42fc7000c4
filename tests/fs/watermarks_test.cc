#include "fs/watermarks.h"

#include <gtest/gtest.h>

namespace cowfs {
namespace {

using Marks = std::vector<unsigned>;

TEST(Watermarks, EachCountsOnceUntilItWasLeftByMoreThanAPercent) {
  Watermarks marks({90, 80});
  EXPECT_EQ(marks.reached(), std::nullopt);
  EXPECT_EQ(marks.update(79), Marks());
  EXPECT_EQ(marks.update(80), Marks{80});
  EXPECT_EQ(marks.update(85), Marks());
  EXPECT_EQ(marks.update(79), Marks());
  EXPECT_EQ(marks.reached(), 80U);
  EXPECT_EQ(marks.update(78), Marks());
  EXPECT_EQ(marks.reached(), std::nullopt);
  EXPECT_EQ(marks.update(80), Marks{80});
}

TEST(Watermarks, SeveralCanBePassedAtOnce) {
  Watermarks marks({80, 90, 95});
  EXPECT_EQ(marks.update(94), (Marks{80, 90}));
  EXPECT_EQ(marks.reached(), 90U);
  EXPECT_EQ(marks.update(100), Marks{95});
  EXPECT_EQ(marks.update(0), Marks());
  EXPECT_EQ(marks.reached(), std::nullopt);
}

TEST(Watermarks, NoMarksAreNeverReached) {
  Watermarks marks({});
  EXPECT_EQ(marks.update(100), Marks());
  EXPECT_EQ(marks.reached(), std::nullopt);
}

TEST(Watermarks, ThoseThatWereReachedBeforeDoNotCountAgain) {
  Watermarks marks({80, 90, 95}, 90);
  EXPECT_EQ(marks.reached(), 90U);
  EXPECT_EQ(marks.update(92), Marks());
  EXPECT_EQ(marks.update(96), Marks{95});
  EXPECT_EQ(marks.update(70), Marks());
  EXPECT_EQ(marks.update(81), Marks{80});
}

TEST(UsedPercent, LeavesOutWhatIsForRootAlone) {
  EXPECT_EQ(used_percent({.total = 1000, .free = 1000, .available = 900}), 0U);
  EXPECT_EQ(used_percent({.total = 1000, .free = 100, .available = 0}), 100U);
  EXPECT_EQ(used_percent({.total = 1000, .free = 550, .available = 450}), 50U);
  EXPECT_EQ(used_percent({.total = 0, .free = 0, .available = 0}), 100U);
  EXPECT_EQ(used_percent({.total = 1000, .free = 991, .available = 991}), 1U);
}

}  // namespace
}  // namespace cowfs
