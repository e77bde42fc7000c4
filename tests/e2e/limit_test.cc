// Limits of images and watermarks of the store's disk: what they stop, and what they tell.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <ostream>
#include <thread>
#include <vector>

#include "tests/e2e/full_disk.h"

namespace cowfs::e2e {
namespace {

using Limit = Full;

TEST_P(Limit, StopsThatImageAloneUntilItIsRaised) {
  auto mount = MountOnHost("full=wait");
  Touch(*mount / "dom1");
  Touch(*mount / "dom2");
  Must(Cowfs({"limit", *mount / "dom1", "2M"}));
  EXPECT_EQ(CowfsJson({"info", *mount / "dom1"})["space_limit"], 2 * kMiB);
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 0, RandomBytes(kMiB, 1)), 0);
  const Bytes more = RandomBytes(4 * kMiB, 2);
  Writer writer(*mount / "dom1", 8 * kMiB, more);
  EXPECT_TRUE(Waits(*mount / "dom1"));
  EXPECT_LE(CowfsJson({"info", *mount / "dom1"})["own_bytes"], 2 * kMiB);
  EXPECT_EQ(WriteDirectly(*mount / "dom2", 0, RandomBytes(8 * kMiB, 3)), 0);
  Must(Cowfs({"limit", *mount / "dom1", "none"}));
  EXPECT_EQ(writer.Join(), 0);
  EXPECT_TRUE(Same(more, File(*mount / "dom1").Read(8 * kMiB, 4 * kMiB)));
}

TEST_P(Limit, HoldsOverMountsAndTrimsMakeRoomBelowIt) {
  auto mount = MountOnHost("full=error");
  Touch(*mount / "dom1");
  mount->Unmount();
  Must(Cowfs({"limit", "--store", host_->path() / "store", "dom1", "2M"}));
  mount->MountAgain();
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 0, RandomBytes(kMiB, 1)), 0);
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 8 * kMiB, RandomBytes(4 * kMiB, 2)), ENOSPC);
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 0, RandomBytes(kMiB, 3)), 0) << "in place";
  {
    const File image(*mount / "dom1");
    EXPECT_NE(::fallocate(image.fd(), 0, static_cast<off_t>(16 * kMiB), 4 * kMiB), 0);
    EXPECT_EQ(errno, ENOSPC);
    image.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 16 * kMiB);
    image.Sync();
  }
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 8 * kMiB, RandomBytes(kMiB, 4)), 0);
}

// execve(2) closes the image, which waits for its writes, and the kernel lets nobody look at a
// process in execve(2).
TEST_P(Limit, AProcessThatCannotBeLookedAtHoldsUpNoCommand) {
  auto mount = MountOnHost("full=wait");
  Touch(*mount / "dom1");
  Must(Cowfs({"limit", *mount / "dom1", "64K"}));
  Background stuck({"python3", "-c",
                    "import os, sys\n"
                    "fd = os.open(sys.argv[1], os.O_RDWR)\n"
                    "os.write(fd, b'x' * (4 << 20))\n"
                    "os.execlp('sleep', 'sleep', '1000')\n",
                    *mount / "dom1"},
                   Scratch() / "out", Scratch() / "err");
  const RunOptions in_time{.timeout = std::chrono::seconds(30)};
  ASSERT_TRUE(Waits(MountPoint()));
  Must(Cowfs({"info", *mount / "dom1"}, in_time));
  Must(Cowfs({"ls", MountPoint()}, in_time));
  const Result forced = Cowfs({"umount", "--force", MountPoint()}, in_time);
  EXPECT_TRUE(Mentions(forced.err, "unmounted, but not all is durable"));
  EXPECT_FALSE(IsMountPoint(MountPoint()));
}

// The kernel keeps an image locked that is being written to. Who waits for it in unlink(2) or
// rename(2) has the directory locked, and so would hold up every machine's names.
TEST_P(Limit, AnImageThatWaitsHoldsUpNoNames) {
  auto mount = MountOnHost("full=wait");
  Touch(*mount / "dom1");
  Touch(*mount / "dom2");
  Must(Cowfs({"limit", *mount / "dom1", "1M"}));
  Writer writer(*mount / "dom1", 0, RandomBytes(2 * kMiB, 1));
  ASSERT_TRUE(Waits(*mount / "dom1"));
  const std::vector<Arguments> lines = {
      {"rm", *mount / "dom1"},
      {"mv", *mount / "dom1", *mount / "dom3"},
      {"mv", "--force", *mount / "dom2", *mount / "dom1"},
      {"resize", *mount / "dom1", "1G"},
  };
  for (const Arguments& line : lines) {
    const Result refused = Cowfs(line);
    EXPECT_EQ(refused.status, 1);
    EXPECT_TRUE(Mentions(refused.err, "dom1: its writes wait for space"));
  }
  Must(Cowfs({"create", *mount / "dom4"}));
  Must(Cowfs({"mv", *mount / "dom4", *mount / "dom5"}));
  Must(Cowfs({"rm", *mount / "dom5"}));

  Must(Cowfs({"rm", "--force", *mount / "dom1"}));
  EXPECT_EQ(writer.Join(), ENOSPC);
  EXPECT_EQ(Parked(MountPoint()), 0U);
  EXPECT_FALSE(std::filesystem::exists(*mount / "dom1"));
  EXPECT_TRUE(Holds(*mount / "dom2", base_));
}

TEST_P(Limit, IsNotForEverybodyToChange) {
  auto mount = MountOnHost("full=error");
  Touch(*mount / "dom1");
  std::filesystem::permissions(*mount / "dom1", std::filesystem::perms(0666));
  const Result refused = Cowfs({"limit", *mount / "dom1", "1G"}, {.as_nobody = true});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, "only root"));
  EXPECT_TRUE(CowfsJson({"info", *mount / "dom1"})["space_limit"].is_null());
}

INSTANTIATE_TEST_SUITE_P(Types, Limit, testing::Values("ext4"),
                         [](const testing::TestParamInfo<std::string>& type) {
                           return type.param;
                         });

using Marks = Full;

TEST_P(Marks, ACommandThatFailsIsLoggedWithHowItEnded) {
  auto mount =
      MountOnHost("watermarks=1:2,on_watermark=\"[ $COWFS_WATERMARK = 1 ] && exit 3; kill -9 $$\"");
  EXPECT_TRUE(Eventually([&] {
    const Bytes log = ReadFile(Log());
    return log.find("exit status 3") != Bytes::npos && log.find("by signal 9") != Bytes::npos;
  })) << ReadFile(Log());
}

TEST_P(Marks, AreLoggedShownAndRunACommand) {
  const Path seen = Scratch() / "seen";
  auto mount = MountOnHost("watermarks=60:99,on_watermark=\"echo $COWFS_WATERMARK $COWFS_MOUNT >>" +
                           seen.string() + "\"");
  EXPECT_TRUE(CowfsJson({"info", MountPoint()})["watermark"].is_null());
  const File filler(Filler(), O_RDWR | O_CREAT);
  filler.Allocate(0, 0, 260 * kMiB);
  EXPECT_TRUE(Eventually([&] { return CowfsJson({"info", MountPoint()})["watermark"] == 60; }));
  const std::string line = "60 " + MountPoint().string() + "\n";
  EXPECT_TRUE(Eventually([&] { return std::filesystem::exists(seen) && ReadFile(seen) == line; }));
  EXPECT_TRUE(Mentions(ReadFile(Log()), "watermark 60 %"));
  // Once, however long it stays so.
  SleepMilliseconds(4500);
  EXPECT_EQ(ReadFile(seen), line);
}

INSTANTIATE_TEST_SUITE_P(Types, Marks, testing::Values("ext4"),
                         [](const testing::TestParamInfo<std::string>& type) {
                           return type.param;
                         });

}  // namespace
}  // namespace cowfs::e2e
