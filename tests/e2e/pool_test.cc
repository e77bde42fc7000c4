// Policy `pool` from command line to disk: a file, and a block device, as dm-cow had it.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/statvfs.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <thread>

#include "tests/e2e/full_disk.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class Pool : public FullDisk {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    base_ = MakeBase();
    std::filesystem::create_directory(MountPoint());
  }
  std::unique_ptr<Mount> MountPool(Arguments more = {}) {
    Arguments arguments{"--policy", "pool"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return MountBase(arguments);
  }
  // A device as /dev/vdb is one: nothing but zeros.
  LoopDevice& Disk(uint64_t size) {
    File(disk_file_, O_RDWR | O_CREAT).Truncate(size);
    disk_ = std::make_unique<LoopDevice>(disk_file_);
    return *disk_;
  }
  void ResizeDisk(uint64_t size) const {
    File(disk_file_).Truncate(size);
    Must(Execute({"losetup", "--set-capacity", disk_->device()}));
  }

  const Path disk_file_ = Scratch() / "disk.img";
  std::unique_ptr<LoopDevice> disk_;
};

TEST_F(Pool, AFileInTheStoreTakesWhatMachinesWrite) {
  auto mount = MountPool({"--pool-size", "64M"});
  const Bytes bytes = RandomBytes(3 * kMiB + 700, 1);
  Touch(*mount / "dom1");
  File(*mount / "dom1").Write(kMiB + 100, bytes);
  Touch(*mount / "dom2");
  File(*mount / "dom2").Write(0, RandomBytes(kMiB, 2));
  mount->Remount();
  EXPECT_TRUE(Same(bytes, File(*mount / "dom1").Read(kMiB + 100, bytes.size())));
  EXPECT_TRUE(Same(RandomBytes(kMiB, 2), File(*mount / "dom2").Read(0, kMiB)));
  EXPECT_TRUE(std::filesystem::is_empty(Store() / "layers"));

  const Json info = CowfsJson({"info", MountPoint()});
  EXPECT_EQ(info["policy"], "pool");
  EXPECT_EQ(info["pool"]["path"], (Store() / "pool").string());
  EXPECT_EQ(info["pool"]["size"], 64 * kMiB);
  EXPECT_EQ(info["total_bytes"], 64 * kMiB);
  const Json pool = CowfsJson({"pool", "info", MountPoint()});
  EXPECT_EQ(pool["used_bytes"], info["own_bytes"]);
  EXPECT_FALSE(pool["device"]);
  const std::string text = Must(Cowfs({"pool", "info", MountPoint()}));
  EXPECT_TRUE(Mentions(text, "64 MiB"));
  const std::string image = Must(Cowfs({"info", *mount / "dom1"}));
  EXPECT_TRUE(Mentions(image, "its chunks lie in the store's pool"));
  struct statvfs space {};
  ASSERT_EQ(::statvfs(MountPoint().c_str(), &space), 0);
  EXPECT_EQ(space.f_blocks * space.f_frsize, 64 * kMiB);

  Must(Cowfs({"check", MountPoint()}));
  mount->Unmount();
  Must(Cowfs({"check", Store()}));
  EXPECT_EQ(CowfsJson({"pool", "info", Store()}), pool);
  EXPECT_EQ(CowfsJson({"info", "--store", Store(), "dom2"})["own_bytes"], kMiB);
  Must(Cowfs({"rm", "--store", Store(), "dom1", "dom2"}));
  EXPECT_EQ(CowfsJson({"pool", "info", Store()})["used_bytes"], 0U);
}

TEST_F(Pool, ABlockDeviceTakesWhatMachinesWriteAndGrows) {
  const std::string device = Disk(32 * kMiB).device();
  auto mount = MountPool({"--pool", device});
  EXPECT_EQ(std::filesystem::read_symlink(Store() / "pool"), device);
  Touch(*mount / "dom1");
  const Bytes bytes = RandomBytes(4 * kMiB, 1);
  File(*mount / "dom1").Write(0, bytes);
  EXPECT_EQ(CowfsJson({"pool", "info", MountPoint()})["size"], 30 * kMiB);
  EXPECT_TRUE(CowfsJson({"pool", "info", MountPoint()})["device"]);
  EXPECT_TRUE(Mentions(Cowfs({"pool", "grow", MountPoint()}).err, "has not grown"));
  EXPECT_TRUE(Mentions(Cowfs({"pool", "grow", MountPoint(), "1G"}).err, "is a device"));
  ResizeDisk(64 * kMiB);
  Must(Cowfs({"pool", "grow", MountPoint()}));
  EXPECT_EQ(CowfsJson({"pool", "info", MountPoint()})["size"], 62 * kMiB);
  mount.reset();
  ResizeDisk(96 * kMiB);
  mount = MountBase();  // the store knows the rest
  EXPECT_EQ(CowfsJson({"pool", "info", MountPoint()})["size"], 94 * kMiB);
  EXPECT_TRUE(Same(bytes, File(*mount / "dom1").Read(0, bytes.size())));
  Must(Cowfs({"check", MountPoint()}));
}

TEST_F(Pool, ADeviceThatIsInUseOrHoldsSomethingIsLeftAlone) {
  const std::string device = Disk(32 * kMiB).device();
  Must(Execute({"mkfs.ext4", "-q", device}));
  const Bytes before = ReadFile(disk_file_);
  const Result holds = Cowfs({"mount", "--policy", "pool", "--pool", device, Base(), MountPoint()});
  EXPECT_EQ(holds.status, 1);
  EXPECT_TRUE(Mentions(holds.err, "holds something"));
  EXPECT_TRUE(Same(before, ReadFile(disk_file_)));
  EXPECT_FALSE(std::filesystem::exists(Store()));
  const Path elsewhere = Scratch() / "elsewhere";
  std::filesystem::create_directory(elsewhere);
  Must(Execute({"mount", device, elsewhere}));
  const Undo unmount([elsewhere] { Execute({"umount", elsewhere}); });
  const Result used = Cowfs({"mount", "--policy", "pool", "--pool", device, Base(), MountPoint()});
  EXPECT_EQ(used.status, 1);
  EXPECT_TRUE(Mentions(used.err, "is in use"));
}

TEST_F(Pool, MkfsOnThePoolAndAnotherStoresPoolAreSeen) {
  const std::string device = Disk(32 * kMiB).device();
  auto mount = MountPool({"--pool", device});
  Touch(*mount / "dom1");
  File(*mount / "dom1").Write(0, RandomBytes(kMiB, 1));
  // Nobody makes a file system on what is in use.
  EXPECT_NE(Execute({"mkfs.xfs", "-q", "-f", device}).status, 0);
  mount.reset();
  {
    const Result another = Cowfs({"mount", "--policy", "pool", "--pool", device, "--store",
                                  Scratch() / "other", Base(), MountPoint()});
    EXPECT_EQ(another.status, 1);
    EXPECT_TRUE(Mentions(another.err, "is the pool of the store with UUID"));
  }
  Must(Execute({"mkswap", device}));
  const Result wiped = Cowfs({"mount", Base(), MountPoint()});
  EXPECT_EQ(wiped.status, 1);
  EXPECT_TRUE(Mentions(wiped.err, "somebody wrote to it"));
  const Result check = Cowfs({"check", Store()});
  EXPECT_EQ(check.status, 2);
  EXPECT_TRUE(Mentions(check.out, device));
  EXPECT_TRUE(Mentions(wiped.err, "restore-header"));
  EXPECT_TRUE(Mentions(Must(Cowfs({"pool", "restore-header", Store()})), "swap space"));
  mount = MountBase();
  EXPECT_TRUE(Mentions(Cowfs({"pool", "restore-header", MountPoint()}).err, "is mounted"));
  EXPECT_TRUE(Mentions(Cowfs({"pool", "restore-header", Store()}).err, "mount"));
  EXPECT_TRUE(Same(RandomBytes(kMiB, 1), File(*mount / "dom1").Read(0, kMiB)));
}

TEST_F(Pool, AnEarlierCopyOfTheStoreIsRefusedOverANewerPool) {
  const std::string device = Disk(32 * kMiB).device();
  auto mount = MountPool({"--pool", device});
  Touch(*mount / "dom1");
  mount.reset();
  const Path copy = Scratch() / "copy";
  Must(Execute({"cp", "-a", Store(), copy}));
  Must(Cowfs({"pool", "info", copy}));
  mount = MountBase();
  const Bytes bytes = RandomBytes(kMiB, 1);
  File(*mount / "dom1").Write(0, bytes);
  // Refused by the device itself so far, but a look sees it.
  EXPECT_TRUE(Mentions(Cowfs({"check", copy}).out, "is newer than the catalog"));
  mount.reset();
  const Result refused = Cowfs({"mount", "--store", copy, Base(), MountPoint()});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, "is newer than the catalog"));
  const Result info = Cowfs({"pool", "info", copy});
  EXPECT_EQ(info.status, 1);
  EXPECT_TRUE(Mentions(info.out, "is newer than the catalog"));
  EXPECT_TRUE(CowfsJson({"pool", "info", Store()})["problem"].is_null());
  mount = MountBase();
  EXPECT_TRUE(Same(bytes, File(*mount / "dom1").Read(0, bytes.size())));
}

TEST_F(Pool, AFullPoolHoldsWritesUntilItHasGrown) {
  auto mount = MountPool({"--pool-size", "2M", "-o", "full=wait"});
  Touch(*mount / "dom1");
  const Bytes bytes = RandomBytes(4 * kMiB, 1);
  Writer writer(*mount / "dom1", 0, bytes);
  EXPECT_TRUE(Waits(*mount / "dom1"));
  EXPECT_TRUE(
      Mentions(Cowfs({"umount", MountPoint()}).err, "cowfs pool grow " + MountPoint().string()));
  EXPECT_TRUE(
      Mentions(Cowfs({"rm", *mount / "dom1"}).err, "cowfs pool grow " + MountPoint().string()));
  EXPECT_TRUE(Mentions(Cowfs({"pool", "grow", Store(), "16M"}).err,
                       "is mounted on " + MountPoint().string() + "; name that"));
  EXPECT_TRUE(Mentions(Cowfs({"pool", "grow", MountPoint(), "1P"}).err, "smaller than 256 TiB"));
  EXPECT_EQ(Must(Cowfs({"pool", "grow", MountPoint(), "16M"})), "");
  EXPECT_EQ(writer.Join(), 0);
  EXPECT_TRUE(Same(bytes, File(*mount / "dom1").Read(0, bytes.size())));
  EXPECT_TRUE(Mentions(Cowfs({"pool", "grow", MountPoint(), "8M"}).err, "does not become smaller"));
  mount->Unmount();
  Must(Cowfs({"pool", "grow", Store(), "24M"}));
  EXPECT_EQ(CowfsJson({"pool", "info", Store()})["size"], 24 * kMiB);
}

TEST_F(Pool, WhereADeviceHasBecomeSmallerNobodyWaitsForSpace) {
  const std::string device = Disk(64 * kMiB).device();
  auto mount = MountPool({"--pool", device, "-o", "full=wait"});
  Touch(*mount / "dom1");
  File(*mount / "dom1").Write(0, RandomBytes(kMiB, 1));
  Must(Cowfs({"sync", MountPoint()}));
  ResizeDisk(3 * kMiB);
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 8 * kMiB, RandomBytes(kMiB, 2)), EIO);
  EXPECT_EQ(Parked(*mount / "dom1"), 0U);
  EXPECT_TRUE(Mentions(Cowfs({"check", MountPoint()}).out, "has become shorter"));
  ResizeDisk(64 * kMiB);
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 8 * kMiB, RandomBytes(kMiB, 2)), 0);
}

TEST_F(Pool, ServersThatDieAndAreReplacedGoOnWithIt) {
  const std::string device = Disk(64 * kMiB).device();
  auto mount = MountPool({"--pool", device});
  Touch(*mount / "dom1");
  Touch(*mount / "dom2");
  const LoopDevice loop(*mount / "dom1", {"--direct-io=on"});
  Machine one(loop.device(), 64, O_DIRECT);
  Machine two(*mount / "dom2", 64, O_DIRECT);
  for (int i = 0; i < 8; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    if (i % 2 == 0) {
      Must(Cowfs({"restart", MountPoint()}));
    } else {
      ::kill(CowfsJson({"info", MountPoint()})["server_pid"].get<pid_t>(), SIGKILL);
    }
  }
  one.ExpectGoodEnd();
  two.ExpectGoodEnd();
}

TEST_F(Pool, WhatGoesTogetherAndWhatDoesNotIsSaid) {
  EXPECT_TRUE(Mentions(Cowfs({"pool", "--force", "info", Store()}).err, "restore-header"));
  EXPECT_TRUE(
      Mentions(Cowfs({"mount", "--pool-size", "1G", Base(), MountPoint()}).err, "--policy pool"));
  EXPECT_FALSE(std::filesystem::exists(Store()));
  auto mount = MountBase();
  EXPECT_TRUE(Mentions(Cowfs({"pool", "info", MountPoint()}).err, "has no pool"));
  EXPECT_TRUE(Mentions(Cowfs({"pool", "grow", MountPoint(), "1G"}).err, "has no pool"));
  mount.reset();
  EXPECT_TRUE(Mentions(Cowfs({"pool", "info", Store()}).err, "has no pool"));
  EXPECT_TRUE(
      Mentions(Cowfs({"mount", "--policy", "pool", Base(), MountPoint()}).err, "policy is fixed"));
  EXPECT_EQ(Cowfs({"pool", "shrink", Store()}).status, 2);
  EXPECT_TRUE(
      Mentions(Cowfs({"pool", "info", Scratch()}).err, "neither a mount point nor a store"));
}

}  // namespace
}  // namespace cowfs::e2e
