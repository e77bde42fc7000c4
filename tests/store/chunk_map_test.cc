#include "store/chunk_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <random>
#include <thread>

#include "tests/store/support.h"

namespace cowfs::test {
namespace {

/// What a catalog would hold.
class Pages {
 public:
  ChunkMap::Load loader() {
    return [this](uint64_t first, uint64_t count, const ChunkMap::Receive& receive) {
      loads_.push_back(first);
      if (failing_) throw Error(EIO, "load");
      for (auto at = pages_.lower_bound(first); at != pages_.end() && at->first < first + count;
           ++at) {
        receive(at->first, at->second);
      }
    };
  }
  void put(const PageCopy& copy) { pages_[copy.page] = copy.bits; }
  std::map<uint64_t, MapBits> pages_;
  std::vector<uint64_t> loads_;
  bool failing_ = false;
};

constexpr uint64_t kLeafChunks = kChunksPerPage * 1024;

class ChunkMapTest : public ::testing::Test {
 protected:
  ChunkMap make() { return {arena_, 1, pages_.loader()}; }
  void save(ChunkMap& map) {
    for (const PageCopy& copy : map.take_dirty()) pages_.put(copy);
  }
  MapArena arena_;
  Pages pages_;
};

std::pair<ChunkState, uint64_t> answer(ChunkState state, uint64_t count) { return {state, count}; }

TEST_F(ChunkMapTest, EverythingIsAbsentAtFirst) {
  ChunkMap map = make();
  EXPECT_EQ(map.run(0, 1), answer(ChunkState::absent, 1));
  EXPECT_EQ(map.run(123456789, 100000), answer(ChunkState::absent, 100000));
  EXPECT_EQ(map.run(ChunkMap::kMaxChunks - 1, 1), answer(ChunkState::absent, 1));
  EXPECT_FALSE(map.dirty());
  EXPECT_TRUE(map.take_dirty().empty());
}

TEST_F(ChunkMapTest, RunsCrossWordsPagesAndLeaves) {
  ChunkMap map = make();
  map.set(kLeafChunks - 3000, 6000, ChunkState::present);
  EXPECT_EQ(map.run(kLeafChunks - 3000, 10000), answer(ChunkState::present, 6000));
  EXPECT_EQ(map.run(kLeafChunks - 3001, 10000), answer(ChunkState::absent, 1));
  EXPECT_EQ(map.run(kLeafChunks - 1, 2), answer(ChunkState::present, 2));
  EXPECT_EQ(map.run(kLeafChunks + 3000, 7), answer(ChunkState::absent, 7));
  map.set(kLeafChunks, 1, ChunkState::zero);
  EXPECT_EQ(map.run(kLeafChunks - 3000, 10000), answer(ChunkState::present, 3000));
  EXPECT_EQ(map.run(kLeafChunks, 10000), answer(ChunkState::zero, 1));
}

TEST_F(ChunkMapTest, SetBeyondTheLargestImageIsRefused) {
  ChunkMap map = make();
  EXPECT_EQ(error_of([&] { map.set(ChunkMap::kMaxChunks - 1, 2, ChunkState::zero); }).code(),
            EFBIG);
  map.set(ChunkMap::kMaxChunks - 1, 1, ChunkState::zero);
  EXPECT_EQ(map.run(ChunkMap::kMaxChunks - 2, 10), answer(ChunkState::absent, 1));
  EXPECT_EQ(map.run(ChunkMap::kMaxChunks - 1, 10), answer(ChunkState::zero, 1));
}

TEST_F(ChunkMapTest, OnlyTheLeafThatIsAskedForIsLoaded) {
  ChunkMap map = make();
  static_cast<void>(map.run(kLeafChunks + 5, 1));
  static_cast<void>(map.run(kLeafChunks + 9000, 1));
  EXPECT_EQ(pages_.loads_, std::vector<uint64_t>{1024});
}

TEST_F(ChunkMapTest, LoadedMapIsWhatWasSaved) {
  {
    ChunkMap map = make();
    map.set(5, 10, ChunkState::present);
    map.set(kLeafChunks * 3 - 1, 2, ChunkState::zero);
    save(map);
  }
  ChunkMap map = make();
  EXPECT_EQ(map.run(0, 100), answer(ChunkState::absent, 5));
  EXPECT_EQ(map.run(5, 100), answer(ChunkState::present, 10));
  EXPECT_EQ(map.run(kLeafChunks * 3 - 1, 100), answer(ChunkState::zero, 2));
  EXPECT_FALSE(map.dirty());
}

TEST_F(ChunkMapTest, FailedLoadIsTriedAgain) {
  {
    ChunkMap map = make();
    map.set(5, 10, ChunkState::present);
    save(map);
  }
  ChunkMap map = make();
  pages_.failing_ = true;
  EXPECT_EQ(error_of([&] { static_cast<void>(map.run(5, 1)); }).code(), EIO);
  EXPECT_EQ(error_of([&] { map.set(5, 1, ChunkState::zero); }).code(), EIO);
  pages_.failing_ = false;
  EXPECT_EQ(map.run(5, 100), answer(ChunkState::present, 10));
  EXPECT_FALSE(map.dirty());
}

TEST_F(ChunkMapTest, TakeDirtyGivesEachChangedPageOnceInOrder) {
  ChunkMap map = make();
  map.set(kChunksPerPage * 9, 1, ChunkState::present);
  map.set(kChunksPerPage * 2, 1, ChunkState::present);
  map.set(kChunksPerPage * 9 + 5, 1, ChunkState::zero);
  EXPECT_TRUE(map.dirty());
  const auto copies = map.take_dirty();
  ASSERT_EQ(copies.size(), 2U);
  EXPECT_EQ(copies[0].page, 2U);
  EXPECT_EQ(copies[1].page, 9U);
  EXPECT_EQ(copies[1].bits[0], 1U | (2U << 10));
  EXPECT_FALSE(map.dirty());
  map.set(kChunksPerPage * 9, 1, ChunkState::absent);
  EXPECT_EQ(map.take_dirty().size(), 1U);
}

TEST_F(ChunkMapTest, CopyDoesNotFollowLaterChanges) {
  ChunkMap map = make();
  map.set(0, 1, ChunkState::present);
  const auto copies = map.take_dirty();
  map.set(1, 1, ChunkState::present);
  EXPECT_EQ(copies.at(0).bits[0], 1U);
  EXPECT_EQ(map.copy(0).bits[0], 5U);
  EXPECT_EQ(map.copy(77).bits, MapBits{});
}

TEST_F(ChunkMapTest, ClearFromKeepsWhatIsBefore) {
  for (const uint64_t first :
       {uint64_t{0}, uint64_t{1}, uint64_t{31}, uint64_t{32}, uint64_t{33}, kChunksPerPage - 1,
        kChunksPerPage, kChunksPerPage + 1, kLeafChunks - 1, kLeafChunks, kLeafChunks + 100}) {
    ChunkMap map = make();
    map.set(0, kLeafChunks + 5000, ChunkState::present);
    map.clear_from(first);
    if (first > 0) {
      EXPECT_EQ(map.run(0, kLeafChunks * 2), answer(ChunkState::present, first)) << first;
    }
    EXPECT_EQ(map.run(first, kLeafChunks), answer(ChunkState::absent, kLeafChunks)) << first;
    for (const PageCopy& copy : map.take_dirty()) {
      EXPECT_LE(copy.page, first / kChunksPerPage) << first;
    }
    pages_.loads_.clear();
  }
}

TEST_F(ChunkMapTest, PagesGoBackToTheArena) {
  {
    ChunkMap map = make();
    map.set(0, kChunksPerPage * 3, ChunkState::present);
  }
  const uint32_t slot = arena_.allocate(1, 0);
  EXPECT_LE(slot, 3U);
}

TEST_F(ChunkMapTest, AgreesWithAPlainVector) {
  constexpr uint64_t kCount = kChunksPerPage * 5;
  constexpr uint64_t kStart = kLeafChunks - kChunksPerPage * 2 - 7;
  std::mt19937_64 random(random_seed());
  std::vector<ChunkState> plain(kCount, ChunkState::absent);
  auto map = std::make_unique<ChunkMap>(arena_, 1, pages_.loader());
  for (int round = 0; round < 3000; ++round) {
    const uint64_t first = random() % kCount;
    const uint64_t most = random() % 3 == 0 ? 70 : 5000;
    const uint64_t count = std::min(1 + random() % most, kCount - first);
    switch (random() % 20) {
      case 0:
        // All leaves are loaded, so that this is not about what the catalog forgets.
        for (const auto& saved : pages_.pages_) static_cast<void>(map->copy(saved.first));
        map->clear_from(kStart + first);
        std::fill(plain.begin() + static_cast<int64_t>(first), plain.end(), ChunkState::absent);
        for (auto& [page, bits] : pages_.pages_) bits = map->copy(page).bits;
        break;
      case 1:
        save(*map);
        map = std::make_unique<ChunkMap>(arena_, 1, pages_.loader());
        break;
      default: {
        const auto state = static_cast<ChunkState>(random() % 3);
        map->set(kStart + first, count, state);
        std::fill_n(plain.begin() + static_cast<int64_t>(first), count, state);
      }
    }
    const uint64_t at = random() % kCount;
    const auto [state, length] = map->run(kStart + at, kCount - at);
    const auto begin = plain.begin() + static_cast<int64_t>(at);
    const auto end =
        std::find_if(begin, plain.end(), [&](ChunkState other) { return other != *begin; });
    ASSERT_EQ(state, *begin) << round;
    ASSERT_EQ(length, static_cast<uint64_t>(end - begin)) << round;
  }
}

TEST_F(ChunkMapTest, ThreadsChangeNeighboursWithoutLoss) {
  constexpr uint64_t kCount = kChunksPerPage * 4;
  ChunkMap map = make();
  std::atomic<bool> stop = false;
  std::map<uint64_t, MapBits> saved;
  std::thread committer([&] {
    while (!stop) {
      for (const PageCopy& copy : map.take_dirty()) saved[copy.page] = copy.bits;
      static_cast<void>(map.run(0, kCount));
    }
  });
  std::vector<std::thread> threads;
  for (uint64_t id = 0; id < 3; ++id) {
    threads.emplace_back([&map, id] {
      for (int round = 0; round < 3; ++round) {
        for (uint64_t chunk = id; chunk < kCount; chunk += 3) {
          map.set(chunk, 1, round % 2 == 0 ? ChunkState::zero : ChunkState::present);
          EXPECT_EQ(map.run(chunk, 1).first,
                    round % 2 == 0 ? ChunkState::zero : ChunkState::present);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  stop = true;
  committer.join();
  EXPECT_EQ(map.run(0, kCount), answer(ChunkState::zero, kCount));
  // A change that a copy missed has left the mark set.
  for (const PageCopy& copy : map.take_dirty()) saved[copy.page] = copy.bits;
  for (uint64_t page = 0; page < kCount / kChunksPerPage; ++page) {
    EXPECT_EQ(saved[page], map.copy(page).bits);
  }
}

TEST_F(ChunkMapTest, ThreadsThatMeetAtAnUnloadedLeafLoadItOnce) {
  ChunkMap map = make();
  std::vector<std::thread> threads;
  for (uint64_t id = 0; id < 4; ++id) {
    threads.emplace_back([&map, id] {
      for (uint64_t leaf = 0; leaf < 50; ++leaf) {
        map.set(leaf * kLeafChunks + id, 1, ChunkState::present);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pages_.loads_.size(), 50U);
  for (uint64_t leaf = 0; leaf < 50; ++leaf) {
    EXPECT_EQ(map.run(leaf * kLeafChunks, 100), answer(ChunkState::present, 4));
  }
}

}  // namespace
}  // namespace cowfs::test
