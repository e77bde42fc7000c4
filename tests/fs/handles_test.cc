#include "fs/handles.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <set>

namespace cowfs {
namespace {

std::shared_ptr<LiveMemory> own_memory() { return std::make_shared<LiveMemory>(); }

TEST(Handles, CountOpenersAndWritersOfEachImage) {
  Handles handles(own_memory());
  const uint64_t first = handles.add(10, {.image = 2, .writes = true});
  const uint64_t second = handles.add(12, {.image = 2, .writes = false});
  static_cast<void>(handles.add(14, {.image = 3, .writes = false}));
  EXPECT_EQ(handles.count(2).openers, 2U);
  EXPECT_EQ(handles.count(2).writers, 1U);
  EXPECT_EQ(handles.count(3).writers, 0U);
  EXPECT_EQ(handles.remove(first)->image, 2U);
  EXPECT_EQ(handles.count(2).writers, 0U);
  EXPECT_FALSE(handles.remove(second)->writes);
  EXPECT_EQ(handles.count(2).openers, 0U);
}

TEST(Handles, AreClosedOnceThoughTheirPlaceIsUsedAgain) {
  Handles handles(own_memory());
  const uint64_t old = handles.add(10, {.image = 2, .writes = false});
  EXPECT_TRUE(handles.remove(old));
  EXPECT_FALSE(handles.remove(old));
  const uint64_t next = handles.add(12, {.image = 3, .writes = false});
  EXPECT_NE(next, old);
  EXPECT_FALSE(handles.remove(old));
  EXPECT_EQ(handles.count(3).openers, 1U);
  EXPECT_FALSE(handles.remove(~uint64_t{0}));
}

TEST(Handles, OfAnEarlierProcessAreThere) {
  const int fd = LiveMemory::make();
  uint64_t handle = 0;
  {
    Handles handles(std::make_shared<LiveMemory>(fd));
    handle = handles.add(10, {.image = 2, .writes = true});
    static_cast<void>(handles.remove(handles.add(12, {.image = 3, .writes = true})));
  }
  Handles handles(std::make_shared<LiveMemory>(fd));
  ::close(fd);
  EXPECT_EQ(handles.find(10), std::optional(handle));
  EXPECT_EQ(handles.find(12), std::nullopt);
  ASSERT_EQ(handles.all().size(), 1U);
  EXPECT_EQ(handles.all().front().image, 2U);
  EXPECT_EQ(handles.count(2).writers, 1U);
  EXPECT_TRUE(handles.remove(handle));
  EXPECT_EQ(handles.find(10), std::nullopt);
}

TEST(Handles, ThereIsRoomForMany) {
  Handles handles(own_memory());
  std::set<uint64_t> all;
  for (uint64_t i = 1; i <= 5000; ++i) all.insert(handles.add(i, {.image = i, .writes = false}));
  EXPECT_EQ(all.size(), 5000U);
  EXPECT_EQ(handles.all().size(), 5000U);
  for (const uint64_t handle : all) EXPECT_TRUE(handles.remove(handle));
  EXPECT_TRUE(handles.all().empty());
}

}  // namespace
}  // namespace cowfs
