// Servers are killed at the moments that matter, while machines write and names change: nothing is
// lost, nothing is done twice. $COWFS_KILL_ROUNDS says how often at each, 15 times by default.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/e2e/machine.h"
#include "tests/e2e/mounts.h"
#include "tests/e2e/name_changer.h"
#include "tests/e2e/scribbler.h"
#include "tests/e2e/stop_points.h"

namespace cowfs::e2e {
namespace {

struct Moment {
  StopPoint point;
  const char* name;
};
constexpr Moment kWhileServing[] = {
    {StopPoint::request_read, "request_read"}, {StopPoint::data_written, "data_written"},
    {StopPoint::bit_set, "bit_set"},           {StopPoint::commit_begun, "commit_begun"},
    {StopPoint::committed, "committed"},       {StopPoint::answer_not_sent, "answer_not_sent"},
    {StopPoint::answer_sent, "answer_sent"},
};

class Stop : public MountTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (IsSkipped()) return;
    const Path file = Scratch() / "orders";
    WriteFile(file, Bytes(sizeof(StopOrders), '\0'));
    const int fd = open(file.c_str(), O_RDWR | O_CLOEXEC);
    void* const memory =
        mmap(nullptr, sizeof(StopOrders), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    ASSERT_NE(memory, MAP_FAILED);
    orders_ = static_cast<StopOrders*>(memory);
    base_ = MakeBase(16 * kMiB);
    std::filesystem::create_directories(MountPoint());
    undo_ = UnmountCowfsAtEnd(MountPoint());
    Must(Execute({"env", std::string(kStopOrdersVariable) + "=" + file.string(), STOPPING_PROGRAM,
                  "mount", "-o", std::string("resend=") + GetParam(), "--log-file",
                  (Scratch() / "log").string(), Base().string(), MountPoint().string()}));
  }
  void TearDown() override {
    undo_.Run();
    if (orders_ != nullptr) munmap(orders_, sizeof(StopOrders));
    MountTest::TearDown();
  }

  // Has a process killed there, after some more passes; returns when another serves, or fails.
  void Kill(StopPoint point, int32_t passes) {
    StopOrders::Order& order = orders_->at(point);
    const uint32_t before = order.kills;
    order.passes = passes;
    order.times = 1;
    const bool killed = Eventually([&] { return order.kills > before; });
    order.times = 0;
    ASSERT_TRUE(killed) << "nobody came by";
    ASSERT_TRUE(Eventually([&] { return Info()["restarts"] == kills() + restarts_asked_; }));
  }
  uint32_t kills() const {
    uint32_t sum = 0;
    for (const StopOrders::Order& order : orders_->orders) sum += order.kills;
    return sum;
  }
  Json Info() const { return CowfsJson({"info", MountPoint()}); }

  // What is being killed under, and is right afterwards.
  template <typename Work>
  void UnderLoad(const Work& work) {
    for (const char* name : {"dom1", "dom2", "dom3"}) Touch(MountPoint() / name);
    std::filesystem::create_directories(Scratch() / "guest");
    Touch(MountPoint() / "dom4");
    Must(Cowfs({"resize", MountPoint() / "dom4", "48M"}));
    Must(Execute({"mkfs.ext4", "-q", "-F", (MountPoint() / "dom4").string()}));
    {
      const LoopDevice buffered(MountPoint() / "dom1");
      const LoopDevice direct(MountPoint() / "dom2", {"--direct-io=on"});
      const LoopDevice disk(MountPoint() / "dom4");
      OtherMount guest(disk.device(), Scratch() / "guest");
      Machine one(buffered.device(), 128, 0);
      Machine two(direct.device(), 128, O_DIRECT);
      Machine three(MountPoint() / "dom3", 128, O_DIRECT);
      Machine in_guest(guest / "file", 128, O_CREAT);
      NameChanger names(MountPoint());
      Scribbler scribbler(MountPoint() / "scribbled", base_);
      work();
      ExpectGoodEnd(names.load());
      ExpectGoodEnd(scribbler.load());
      for (Machine* machine : {&one, &two, &three, &in_guest}) machine->ExpectGoodEnd();
      guest.Unmount();
      Must(Execute({"e2fsck", "-fn", disk.device()}));
    }
    EXPECT_EQ(Info()["restarts"], kills() + restarts_asked_);
    for (const char* name : {"dom1", "dom2", "dom3", "dom4"}) {
      std::filesystem::remove(MountPoint() / name);
    }
    EXPECT_TRUE(std::filesystem::is_empty(MountPoint()));
    // What was opened once is closed, and gone.
    EXPECT_TRUE(Eventually([&] { return std::filesystem::is_empty(Store() / "layers"); }));
    Must(Cowfs({"umount", MountPoint()}));
    EXPECT_TRUE(Mentions(Must(Cowfs({"check", Store()})), "clean"));
  }

  Bytes base_;
  StopOrders* orders_ = nullptr;
  uint32_t restarts_asked_ = 0;

 private:
  Undo undo_;
};

int Rounds() {
  const char* const rounds = std::getenv("COWFS_KILL_ROUNDS");
  return rounds == nullptr ? 15 : std::stoi(rounds);
}

TEST_P(Stop, AtEachMomentLosesNothing) {
  std::mt19937 random(1);
  UnderLoad([&] {
    // By turns, so that each falls into other states of the rest.
    for (int round = 0; round < Rounds(); ++round) {
      for (const Moment& moment : kWhileServing) {
        SCOPED_TRACE(moment.name);
        Kill(moment.point, static_cast<int32_t>(random() % 30));
        if (HasFatalFailure()) return;
      }
    }
  });
  for (const Moment& moment : kWhileServing) {
    EXPECT_EQ(orders_->at(moment.point).kills, static_cast<uint32_t>(Rounds())) << moment.name;
  }
}

TEST_P(Stop, WhileAnotherTakesOverLosesNothing) {
  UnderLoad([&] {
    for (int round = 0; round < 5; ++round) {
      for (const StopPoint point : {StopPoint::taking_over, StopPoint::taken_over}) {
        orders_->at(point).times = 2;  // it, and the one that comes after it
        Kill(StopPoint::answer_not_sent, round);
        if (HasFatalFailure()) return;
        EXPECT_TRUE(Eventually([&] { return orders_->at(point).times == 0; }));
      }
    }
  });
  EXPECT_EQ(orders_->at(StopPoint::taking_over).kills, 10U);
  EXPECT_EQ(orders_->at(StopPoint::taken_over).kills, 10U);
}

TEST_P(Stop, InAHandOverLosesNothing) {
  UnderLoad([&] {
    for (int round = 0; round < 4; ++round) {
      Must(Cowfs({"restart", MountPoint()}));
      ++restarts_asked_;
      // The one that was to hand over was on its way out anyway.
      orders_->at(StopPoint::handing_over).times = 1;
      Must(Cowfs({"restart", MountPoint()}));
      // The new one does not become ready, and another of the old program follows.
      orders_->at(StopPoint::taking_over).times = 1;
      const Result result = Cowfs({"restart", MountPoint()});
      EXPECT_EQ(result.status, 1);
      EXPECT_TRUE(Mentions(result.err, "the old one goes on"));
      ++restarts_asked_;
    }
  });
  EXPECT_EQ(orders_->at(StopPoint::handing_over).kills, 4U);
  EXPECT_EQ(orders_->at(StopPoint::taking_over).kills, 4U);
}

INSTANTIATE_TEST_SUITE_P(Resend, Stop, testing::Values("kernel", "slots"),
                         [](const auto& way) { return std::string(way.param); });

}  // namespace
}  // namespace cowfs::e2e
