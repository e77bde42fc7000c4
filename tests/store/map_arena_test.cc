#include "store/map_arena.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

namespace cowfs {
namespace {

TEST(MapArena, PagesAreZeroedAndSlotsAreNeverZero) {
  MapArena arena;
  for (int i = 0; i < 3000; ++i) {  // over the border of two segments
    const uint32_t slot = arena.allocate(7, 9);
    EXPECT_NE(slot, 0U);
    for (const auto& word : arena.page(slot)) ASSERT_EQ(word.load(), 0U);
    arena.page(slot)[3] = 5;
  }
}

TEST(MapArena, ReleasedPageComesBackZeroed) {
  MapArena arena;
  const uint32_t slot = arena.allocate(1, 0);
  arena.page(slot)[63] = ~uint64_t{0};
  arena.header(slot).mark = MapArena::kChanged;
  arena.release(slot);
  const uint32_t again = arena.allocate(2, 5);
  EXPECT_EQ(again, slot);
  EXPECT_EQ(arena.page(again)[63].load(), 0U);
  EXPECT_EQ(arena.header(again).mark.load(), MapArena::kCommitted);
  EXPECT_EQ(arena.header(again).layer.load(), 2U);
  EXPECT_EQ(arena.header(again).page.load(), 5U);
}

TEST(MapArena, ThreadsGetDifferentPages) {
  MapArena arena;
  std::vector<std::vector<uint32_t>> slots(4);
  std::vector<std::thread> threads;
  for (auto& mine : slots) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        mine.push_back(arena.allocate(1, 1));
        if (i % 3 == 0) {
          arena.release(mine.back());
          mine.pop_back();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<uint32_t> all;
  size_t count = 0;
  for (const auto& mine : slots) {
    all.insert(mine.begin(), mine.end());
    count += mine.size();
  }
  EXPECT_EQ(all.size(), count);
}

}  // namespace
}  // namespace cowfs
