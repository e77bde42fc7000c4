#include "store/range_lock.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <future>
#include <random>
#include <thread>

namespace cowfs {
namespace {

TEST(RangeLock, RangesThatTouchDoNotOverlap) {
  RangeLock lock;
  const auto first = lock.lock({0, 10});
  const auto second = lock.lock({10, 20});  // would wait for ever
  EXPECT_TRUE(lock.try_lock({20, 21}));
  EXPECT_FALSE(lock.try_lock({9, 10}));
  EXPECT_FALSE(lock.try_lock({0, 100}));
  EXPECT_FALSE(lock.try_lock({15, 16}));
}

TEST(RangeLock, UnlocksWhenTheGuardEnds) {
  RangeLock lock;
  { const auto guard = lock.lock({0, 10}); }
  EXPECT_TRUE(lock.try_lock({5, 6}));
}

TEST(RangeLock, MovedGuardUnlocksOnce) {
  RangeLock lock;
  auto first = lock.lock({0, 1});
  {
    const auto second = std::move(first);
    EXPECT_FALSE(lock.try_lock({0, 1}));
  }
  EXPECT_TRUE(lock.try_lock({0, 1}));
}

TEST(RangeLock, OverlapWaits) {
  RangeLock lock;
  std::atomic<bool> freed = false;
  auto guard = std::make_unique<RangeLock::Guard>(lock.lock({0, 10}));
  auto waiter = std::async(std::launch::async, [&] {
    const auto mine = lock.lock({9, 12});
    EXPECT_TRUE(freed.load());
  });
  EXPECT_EQ(waiter.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  freed = true;
  guard.reset();
  waiter.get();
}

TEST(RangeLock, WhenFreeRunsAtOnceIfNothingOverlaps) {
  RangeLock lock;
  const auto guard = lock.lock({0, 1});
  bool called = false;
  lock.when_free({1, 2}, [&] { called = true; });
  EXPECT_TRUE(called);
}

TEST(RangeLock, WhenFreeWaitsForTheLastOverlap) {
  RangeLock lock;
  auto first = std::make_unique<RangeLock::Guard>(lock.lock({0, 1}));
  auto second = std::make_unique<RangeLock::Guard>(lock.lock({1, 2}));
  bool called = false;
  lock.when_free({0, 2}, [&] { called = true; });
  first.reset();
  EXPECT_FALSE(called);
  second.reset();
  EXPECT_TRUE(called);
}

TEST(RangeLock, ActionMayTakeTheRange) {
  RangeLock lock;
  auto guard = std::make_unique<RangeLock::Guard>(lock.lock({0, 1}));
  bool taken = false;
  lock.when_free({0, 1}, [&] { taken = static_cast<bool>(lock.try_lock({0, 1})); });
  guard.reset();
  EXPECT_TRUE(taken);
}

TEST(RangeLock, ThreadsNeverShareAChunk) {
  constexpr uint64_t kChunks = 16;
  RangeLock lock;
  std::array<int, kChunks> owner{};
  std::vector<std::thread> threads;
  for (int id = 1; id <= 4; ++id) {
    threads.emplace_back([&, id] {
      std::mt19937 random(static_cast<unsigned>(id));
      for (int round = 0; round < 500; ++round) {
        const uint64_t first = random() % kChunks;
        const uint64_t last = first + 1 + random() % (kChunks - first);
        const auto guard = round % 2 == 0 ? lock.lock({first, last}) : lock.try_lock({first, last});
        if (!guard) continue;
        for (uint64_t i = first; i < last; ++i) owner.at(i) = id;
        for (uint64_t i = first; i < last; ++i) EXPECT_EQ(owner.at(i), id);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace cowfs
