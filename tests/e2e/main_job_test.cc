// The job that cowfs is for: machines with a disk each, over one base, through loop devices.

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class MainJob : public MountTest {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    MakeTree(Scratch() / "tree");
    MakeExt4Image(Base(), 48 * kMiB, Scratch() / "tree");
    base_sum_ = Sha256(Base());
  }

  // Mounts the image's ext4 and hands its directory to the function.
  template <typename Function>
  void InMachine(const Path& image, const Arguments& loop_arguments, Function&& function) const {
    const LoopDevice loop(image, loop_arguments);
    OtherMount disk(loop.device(), Scratch() / ("disk-" + image.filename().string()));
    function(disk.path());
    disk.Unmount();
  }

  static void ExpectCleanExt4(const Path& image) {
    const Result result = Execute({"e2fsck", "-fn", image.string()});
    EXPECT_EQ(result.status, 0) << result.out << result.err;
  }

  std::string base_sum_;
};

TEST_F(MainJob, WhatAMachineWroteIsThereAfterUnmountAndMount) {
  auto mount = MountBase();
  const Path image = *mount / "dom1.img";
  Touch(image);
  InMachine(image, {}, [](const Path& disk) {
    EXPECT_EQ(ReadFile(disk / "etc/hostname"), "golden\n");
    WriteFile(disk / "etc/hostname", "dom1\n");
    WriteFile(disk / "new", RandomBytes(3 * kMiB, 77));
    std::filesystem::remove(disk / "srv/data/file3");
  });
  EXPECT_TRUE(Mentions(Must(Cowfs({"ls", MountPoint()})), "dom1.img"));
  mount->Unmount();
  EXPECT_FALSE(IsMountPoint(MountPoint()));
  EXPECT_FALSE(std::filesystem::exists(image));
  EXPECT_EQ(Sha256(Base()), base_sum_);

  mount->MountAgain();
  ExpectCleanExt4(image);
  InMachine(image, {}, [](const Path& disk) {
    EXPECT_EQ(ReadFile(disk / "etc/hostname"), "dom1\n");
    EXPECT_TRUE(Holds(disk / "new", RandomBytes(3 * kMiB, 77)));
    EXPECT_FALSE(std::filesystem::exists(disk / "srv/data/file3"));
    EXPECT_TRUE(Holds(disk / "srv/data/file2", RandomBytes(200 * kKiB + 2, 2)));
  });
}

TEST_F(MainJob, ThreeMachinesAtOnceSeeTheirOwnChangesOnly) {
  auto mount = MountBase();
  const std::vector<std::string> names{"dom1", "dom2", "dom3"};
  const std::vector<Arguments> loops{{}, {"--direct-io=on"}, {}};
  for (const std::string& name : names) {
    Must(Cowfs({"create", *mount / (name + ".img")}));
  }
  std::vector<std::thread> machines;
  std::vector<std::string> errors(names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    machines.emplace_back([&, i] {
      try {
        InMachine(*mount / (names[i] + ".img"), loops[i], [&](const Path& disk) {
          for (uint32_t round = 0; round < 8; ++round) {
            WriteFile(disk / ("own" + std::to_string(round)),
                      RandomBytes(512 * kKiB, 100 * static_cast<uint32_t>(i) + round));
          }
          WriteFile(disk / "etc/hostname", names[i]);
          WriteFile(disk / ("srv/data/file" + std::to_string(i)), names[i]);
        });
      } catch (const std::exception& error) {
        errors[i] = error.what();
      }
    });
  }
  for (std::thread& machine : machines) {
    machine.join();
  }
  for (const std::string& error : errors) {
    EXPECT_EQ(error, "");
  }
  mount->Remount();
  for (size_t i = 0; i < names.size(); ++i) {
    const Path image = *mount / (names[i] + ".img");
    ExpectCleanExt4(image);
    EXPECT_LT(AllocatedBytes(image), 20 * kMiB) << "more than was written";
    InMachine(image, loops[i], [&](const Path& disk) {
      EXPECT_EQ(ReadFile(disk / "etc/hostname"), names[i]);
      for (uint32_t round = 0; round < 8; ++round) {
        EXPECT_TRUE(Holds(disk / ("own" + std::to_string(round)),
                          RandomBytes(512 * kKiB, 100 * static_cast<uint32_t>(i) + round)));
      }
      for (uint32_t file = 0; file < names.size(); ++file) {
        EXPECT_TRUE(Holds(disk / ("srv/data/file" + std::to_string(file)),
                          file == i ? names[i] : RandomBytes(200 * kKiB + file, file)));
      }
    });
  }
  EXPECT_EQ(Sha256(Base()), base_sum_);
}

TEST_F(MainJob, FlushedDataSurvivesTheDeathOfTheServerUnderARunningMachine) {
  auto mount = MountBase();
  const Path image = *mount / "dom1.img";
  Touch(image);
  {
    const LoopDevice loop(image);
    const OtherMount disk(loop.device(), Scratch() / "disk");
    WriteFile(disk / "flushed", RandomBytes(2 * kMiB, 5));
    Must(Execute({"sync", "-f", (disk / "flushed").string()}));
    mount->Kill();
  }
  Must(Cowfs({"umount", MountPoint()}));
  EXPECT_FALSE(IsMountPoint(MountPoint()));

  mount->MountAgain();
  // The journal is replayed by mounting; only then can the check be clean.
  InMachine(image, {}, [](const Path& disk) {
    EXPECT_TRUE(Holds(disk / "flushed", RandomBytes(2 * kMiB, 5)));
    EXPECT_EQ(ReadFile(disk / "etc/hostname"), "golden\n");
  });
  ExpectCleanExt4(image);
  EXPECT_EQ(Sha256(Base()), base_sum_);
}

TEST_F(MainJob, AnImageThatOnlyReadsTakesNoSpace) {
  auto mount = MountBase();
  const Path image = *mount / "dom1.img";
  Touch(image);
  EXPECT_EQ(Sha256(image), base_sum_);
  const LoopDevice loop(image, {"-r"});
  EXPECT_EQ(Sha256(loop.device()), base_sum_);
  EXPECT_EQ(AllocatedBytes(image), 512U);  // one block: not to be taken for a hole
  EXPECT_EQ(CowfsJson({"info", image})["own_bytes"], 0);
}

TEST_F(MainJob, DiskUsageOfAMachineIsWhatItWrote) {
  auto mount = MountBase();
  const Path image = *mount / "dom1.img";
  Touch(image);
  InMachine(image, {"--direct-io=on"},
            [](const Path& disk) { WriteFile(disk / "new", RandomBytes(4 * kMiB, 9)); });
  Must(Cowfs({"sync", MountPoint()}));
  const uint64_t own = CowfsJson({"info", image})["own_bytes"];
  EXPECT_GE(own, 4 * kMiB);
  EXPECT_LT(own, 12 * kMiB);
  // The kernel may show a second-old count of blocks.
  EXPECT_TRUE(Eventually([&] { return AllocatedBytes(image) == own; }))
      << "st_blocks tell " << AllocatedBytes(image) << ", own_bytes " << own;
  EXPECT_EQ(std::stoull(Must(Execute({"du", "-B1", image.string()}))), own);
}

}  // namespace
}  // namespace cowfs::e2e
