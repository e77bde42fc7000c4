#include "fs/parking.h"

#include <gtest/gtest.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/null_sink.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

namespace cowfs {
namespace {

class ParkingTest : public ::testing::Test {
 protected:
  void park(uint64_t image, Parking::Retry retry) {
    ASSERT_TRUE(parking_.park(image, "no space", std::move(retry)));
  }
  static void wait_until(const std::function<bool()>& condition) {
    while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }

  spdlog::logger log_{"test", std::make_shared<spdlog::sinks::null_sink_mt>()};
  Parking parking_{log_, [](uint64_t image) { return "image " + std::to_string(image); }};
};

TEST_F(ParkingTest, OnlyTheOldestOfAnImageIsTriedAndTheOthersFollowInOrder) {
  std::atomic<bool> space = false;
  std::atomic<int> tries = 0;
  std::atomic<int> too_early = 0;
  std::atomic<int> next = 0;
  std::atomic<int> out_of_order = 0;
  for (int i = 0; i < 300; ++i) {
    park(2, [&, i](bool) {
      if (i == 0) ++tries;
      if (!space) {
        if (i != 0) ++too_early;
        return false;
      }
      if (next++ != i) ++out_of_order;
      return true;
    });
  }
  wait_until([&] { return tries >= 3; });
  EXPECT_EQ(parking_.count(), 300U);
  EXPECT_EQ(parking_.count(2), 300U);
  space = true;
  wait_until([&] { return parking_.count() == 0; });
  EXPECT_EQ(next, 300);
  EXPECT_EQ(out_of_order, 0);
  EXPECT_EQ(too_early, 0);
}

TEST_F(ParkingTest, AnImageWithoutSpaceStopsNoOther) {
  std::atomic<bool> stop = false;
  std::atomic<int> done = 0;
  park(2, [&](bool) { return stop.load(); });
  for (int i = 0; i < 3; ++i) {
    park(3, [&](bool) {
      ++done;
      return true;
    });
  }
  wait_until([&] { return done == 3; });
  wait_until([&] { return parking_.count(3) == 0; });
  EXPECT_EQ(parking_.count(2), 1U);
  stop = true;
  wait_until([&] { return parking_.count() == 0; });
}

TEST_F(ParkingTest, AfterTheEndEverythingIsAnsweredAndNothingWaits) {
  std::atomic<int> given_up = 0;
  for (uint64_t image = 2; image < 6; ++image) {
    park(image, [&](bool give_up) {
      if (give_up) ++given_up;
      return give_up;
    });
  }
  parking_.end_all();
  wait_until([&] { return given_up == 4; });
  EXPECT_FALSE(parking_.park(2, "no space", [](bool) { return false; }));
  parking_.finish();
  EXPECT_EQ(parking_.count(), 0U);
}

}  // namespace
}  // namespace cowfs
