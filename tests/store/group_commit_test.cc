#include "store/group_commit.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace cowfs {
namespace {

/// An operation whose runs the test lets begin and end one by one.
class Gate {
 public:
  void operator()() {
    std::unique_lock lock(mutex_);
    const int mine = ++begun_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return allowed_ >= mine; });
    if (mine == failing_) throw std::runtime_error("run " + std::to_string(mine));
  }
  void wait_for_begin(int run) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return begun_ >= run; });
  }
  void allow(int runs) {
    const std::lock_guard lock(mutex_);
    allowed_ = runs;
    changed_.notify_all();
  }
  void fail(int run) { failing_ = run; }
  int begun() {
    const std::lock_guard lock(mutex_);
    return begun_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int begun_ = 0;
  int allowed_ = 0;
  int failing_ = 0;
};

class GroupCommitTest : public ::testing::Test {
 protected:
  std::future<std::string> call() {
    return std::async(std::launch::async, [this]() -> std::string {
      try {
        commit_.run([this] { gate_(); });
      } catch (const std::exception& error) {
        return error.what();
      }
      return "good";
    });
  }
  static void let_others_queue() { std::this_thread::sleep_for(std::chrono::milliseconds(30)); }

  GroupCommit commit_;
  Gate gate_;
};

TEST_F(GroupCommitTest, CallerAloneRunsAtOnce) {
  gate_.allow(2);
  EXPECT_EQ(call().get(), "good");
  EXPECT_EQ(call().get(), "good");
  EXPECT_EQ(gate_.begun(), 2);
}

TEST_F(GroupCommitTest, RunUnderWayDoesNotServeWhoComesLater) {
  auto first = call();
  gate_.wait_for_begin(1);
  auto second = call();
  let_others_queue();
  gate_.allow(1);
  EXPECT_EQ(first.get(), "good");
  EXPECT_EQ(second.wait_for(std::chrono::milliseconds(30)), std::future_status::timeout);
  gate_.wait_for_begin(2);
  gate_.allow(2);
  EXPECT_EQ(second.get(), "good");
}

TEST_F(GroupCommitTest, ManyWhoWaitShareTheNextRun) {
  auto first = call();
  gate_.wait_for_begin(1);
  std::vector<std::future<std::string>> others;
  for (int i = 0; i < 5; ++i) others.push_back(call());
  let_others_queue();
  gate_.allow(2);
  first.get();
  for (auto& other : others) EXPECT_EQ(other.get(), "good");
  EXPECT_EQ(gate_.begun(), 2);
}

TEST_F(GroupCommitTest, FailureReachesEachCallerThatTheRunServed) {
  gate_.fail(2);
  auto first = call();
  gate_.wait_for_begin(1);
  auto second = call();
  auto third = call();
  let_others_queue();
  gate_.allow(2);
  EXPECT_EQ(first.get(), "good");
  EXPECT_EQ(second.get(), "run 2");
  EXPECT_EQ(third.get(), "run 2");
  gate_.allow(3);
  EXPECT_EQ(call().get(), "good");
}

TEST_F(GroupCommitTest, FailureOfALaterRunIsNotThatOfAnEarlierCaller) {
  // The second run is good, the third fails before all that the second served have woken up.
  std::atomic<int> runs = 0;
  std::atomic<int> unfair = 0;
  for (int round = 0; round < 200; ++round) {
    GroupCommit commit;
    runs = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        int served_by_good = 0;
        try {
          commit.run([&] {
            const int mine = ++runs;
            served_by_good = mine % 2;
            if (mine % 2 == 0) throw std::runtime_error("even");
          });
        } catch (const std::exception&) {
          // A caller that ran a good run itself has nothing to do with the next.
          if (served_by_good == 1) ++unfair;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(unfair.load(), 0);
}

}  // namespace
}  // namespace cowfs
