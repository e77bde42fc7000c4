// Slots: the map that says in which a chunk is, and which are free.

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "store/slot_allocator.h"
#include "store/slot_map.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

// ---- the map ------------------------------------------------------------------------------------

class SlotMapTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kChunks = uint64_t{1} << 34;
  SlotMap make() {
    return {arena_, 1, kChunks,
            [this](uint64_t first, uint64_t count, const SlotMap::Receive& receive) {
              for (const auto& [page, bits] : pages_) {
                if (page >= first && page < first + count) receive(page, bits);
              }
            },
            [](const MapBits&) { return true; }};
  }
  void save(SlotMap& map) {
    for (const PageCopy& copy : map.take_dirty()) pages_[copy.page] = copy.bits;
  }
  static std::string text(const SlotMap::Run& run) {
    return ".pz"[static_cast<size_t>(run.state)] + std::to_string(run.count) + "@" +
           std::to_string(run.slot);
  }

  MapArena arena_;
  std::map<uint64_t, MapBits> pages_;
};

TEST_F(SlotMapTest, EverythingIsAbsentAtFirst) {
  SlotMap map = make();
  EXPECT_EQ(text(map.run(0, 10)), ".10@0");
  EXPECT_EQ(text(map.run(kChunks - 1, 1)), ".1@0");
}

TEST_F(SlotMapTest, NeighboursInSlotsThatFollowAreOneRun) {
  SlotMap map = make();
  map.set_present(100, 60, 1000);  // over a page's border
  map.set_present(160, 5, 2000);
  map.set_present(165, 1, 0);
  EXPECT_EQ(text(map.run(100, 500)), "p60@1000");
  EXPECT_EQ(text(map.run(130, 500)), "p30@1030");
  EXPECT_EQ(text(map.run(160, 500)), "p5@2000");
  EXPECT_EQ(text(map.run(165, 500)), "p1@0");
  EXPECT_EQ(text(map.run(99, 500)), ".1@0");
}

TEST_F(SlotMapTest, TheLastSlotThatTheNumbersReachCanBeUsed) {
  SlotMap map = make();
  map.set_present(7, 1, SlotMap::kMostSlots - 1);
  EXPECT_EQ(text(map.run(7, 2)), "p1@4294967293");
}

TEST_F(SlotMapTest, TakingAwayTellsWhatWasFreed) {
  SlotMap map = make();
  map.set_present(10, 4, 50);
  map.set_present(14, 2, 90);
  std::vector<SlotRun> freed;
  map.take_away(9, 6, ChunkState::zero, freed);
  ASSERT_EQ(freed.size(), 2U);
  EXPECT_EQ(freed[0].first, 50U);
  EXPECT_EQ(freed[0].count, 4U);
  EXPECT_EQ(freed[1].first, 90U);
  EXPECT_EQ(freed[1].count, 1U);
  EXPECT_EQ(text(map.run(9, 100)), "z6@0");
  EXPECT_EQ(text(map.run(15, 100)), "p1@91");
}

TEST_F(SlotMapTest, WhatWasSavedIsLoaded) {
  {
    SlotMap map = make();
    map.set_present(127, 2, 5);
    std::vector<SlotRun> freed;
    map.take_away(300, 1, ChunkState::zero, freed);
    save(map);
  }
  SlotMap map = make();
  EXPECT_EQ(text(map.run(127, 10)), "p2@5");
  EXPECT_EQ(text(map.run(300, 10)), "z1@0");
}

TEST_F(SlotMapTest, DifferencesOfAPage) {
  SlotMap map = make();
  map.set_present(0, 3, 10);
  const MapBits before = map.copy(0).bits;
  std::vector<SlotRun> freed;
  map.take_away(1, 1, ChunkState::absent, freed);
  map.set_present(1, 1, 20);
  SlotDifference difference;
  add_difference(before, map.copy(0).bits, difference);
  ASSERT_EQ(difference.used.size(), 1U);
  EXPECT_EQ(difference.used[0].first, 20U);
  ASSERT_EQ(difference.freed.size(), 1U);
  EXPECT_EQ(difference.freed[0].first, 11U);
}

TEST_F(SlotMapTest, TakesLessThan8BytesForEachChunk) {
  SlotMap map = make();
  constexpr uint64_t kCount = 1 << 20;  // 64 GiB
  map.set_present(0, kCount, 0);
  EXPECT_EQ(text(map.run(0, kCount)), "p1048576@0");
  // A page of the arena has 512 bytes, and its header 16.
  constexpr uint64_t kPages = kCount / SlotMap::kChunksInPage;
  static_assert(kPages * (512 + sizeof(MapArena::Header) + sizeof(uint32_t)) < 8 * kCount);
}

// ---- which slots are free -----------------------------------------------------------------------

std::string text(const std::optional<SlotRun>& run) {
  return run ? std::to_string(run->first) + "+" + std::to_string(run->count) : "none";
}

TEST(SlotAllocator, WhoGoesOnGetsWhatFollows) {
  SlotAllocator slots(1000, 64);
  SlotStream stream;
  EXPECT_EQ(text(slots.allocate(4, {}, stream)), "0+4");
  EXPECT_EQ(text(slots.allocate(4, {}, stream)), "4+4");
  SlotStream other;
  EXPECT_EQ(text(slots.allocate(4, 8, other)), "8+4");
}

TEST(SlotAllocator, WhoBeginsGetsARegionOfHisOwn) {
  SlotAllocator slots(1000, 64);
  SlotStream first;
  SlotStream second;
  EXPECT_EQ(text(slots.allocate(4, {}, first)), "0+4");
  EXPECT_EQ(text(slots.allocate(4, {}, second)), "64+4");
  EXPECT_EQ(text(slots.allocate(4, {}, first)), "4+4");
}

TEST(SlotAllocator, WhoWritesOnLiesInFewPieces) {
  constexpr uint64_t kEach = 64 * 64;
  constexpr uint64_t kLayers = 8;
  SlotAllocator slots(2 * kLayers * kEach, 64);
  std::array<SlotStream, kLayers> streams;
  std::array<uint64_t, kLayers> pieces{};
  for (uint64_t done = 0; done < kEach; done += 16) {
    for (size_t i = 0; i < kLayers; ++i) {
      const uint64_t follows = streams[i].next;
      const auto run = slots.allocate(16, {}, streams[i]);
      ASSERT_TRUE(run);
      ASSERT_EQ(run->count, 16U);
      if (run->first != follows) ++pieces[i];
    }
  }
  // 1, 4, 16, 16 and 16 regions, and the rest; 64 pieces if all were of one.
  for (const uint64_t count : pieces) EXPECT_LE(count, 6U);
}

TEST(SlotAllocator, WhoHasNotFilledHisRegionGetsNoLargerOne) {
  SlotAllocator slots(1000, 64);
  SlotStream stream;
  SlotStream other;
  EXPECT_EQ(text(slots.allocate(4, {}, stream)), "0+4");
  EXPECT_TRUE(slots.claim({4, 1}));
  EXPECT_EQ(text(slots.allocate(4, {}, stream)), "64+4");
  EXPECT_EQ(text(slots.allocate(4, {}, other)), "128+4");
}

TEST(SlotAllocator, RegionsSideBySideDoNotGoRoundTheEnd) {
  SlotAllocator slots(4 * 64, 64);
  SlotStream other;
  const auto begun = slots.allocate(1, {}, other);
  ASSERT_EQ(text(begun), "0+1");
  slots.release({&*begun, 1});
  EXPECT_TRUE(slots.claim({64, 1}));
  EXPECT_TRUE(slots.claim({2 * 64, 1}));
  // The last and the first are left, and the last comes next.
  SlotStream stream{.next = 65, .end = 65, .regions = 1};
  EXPECT_TRUE(slots.claim({65, 1}));
  EXPECT_EQ(text(slots.allocate(1, {}, stream)), "192+1");
  EXPECT_EQ(stream.regions, 1U);
}

TEST(SlotAllocator, EverySlotIsGivenOnceAndNoneTwice) {
  SlotAllocator slots(1000, 64);
  std::array<SlotStream, 3> streams;
  std::vector<bool> seen(1000);
  uint64_t count = 0;
  while (true) {
    // What one of them reserves for itself the others get in the end.
    const auto run = slots.allocate(7, {}, streams[count / 7 % 5 % 3]);
    if (!run) break;
    for (uint64_t slot = run->first; slot < run->first + run->count; ++slot) {
      ASSERT_FALSE(seen.at(slot));
      seen.at(slot) = true;
      ++count;
    }
  }
  EXPECT_EQ(count, 1000U);
  EXPECT_EQ(slots.free_slots(), 0U);
}

/// Takes every slot.
void fill(SlotAllocator& slots) {
  SlotStream stream;
  while (slots.allocate(128, {}, stream)) {
  }
}

TEST(SlotAllocator, WhatIsReleasedIsGivenAgain) {
  SlotAllocator slots(128, 64);
  fill(slots);
  slots.release(std::array<SlotRun, 2>{SlotRun{5, 2}, SlotRun{100, 1}});
  EXPECT_EQ(slots.free_slots(), 3U);
  SlotStream stream;
  EXPECT_TRUE(slots.allocate(9, {}, stream));
  EXPECT_TRUE(slots.allocate(9, {}, stream));
  EXPECT_FALSE(slots.allocate(9, {}, stream));
}

TEST(SlotAllocator, AClaimIsWholeOrNothing) {
  SlotAllocator slots(128, 64);
  EXPECT_TRUE(slots.claim({10, 5}));
  EXPECT_FALSE(slots.claim({8, 3}));
  EXPECT_FALSE(slots.claim({127, 2}));
  EXPECT_FALSE(slots.claim({UINT64_MAX, 2}));
  EXPECT_TRUE(slots.claim({8, 2}));
  EXPECT_EQ(slots.free_slots(), 121U);
}

TEST(SlotAllocator, Grows) {
  SlotAllocator slots(70, 64);
  fill(slots);
  slots.grow(200);
  EXPECT_EQ(slots.free_slots(), 130U);
  SlotStream stream;
  EXPECT_EQ(text(slots.allocate(3, 70, stream)), "70+3");
}

}  // namespace
}  // namespace cowfs::test
