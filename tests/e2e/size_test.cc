// Truncate and resize: what was taken away never comes back.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/e2e/ways.h"

namespace cowfs::e2e {
namespace {

class Size : public WayTest {};

TEST_P(Size, GrownPartReadsAsZerosAlsoBeyondTheBasesEnd) {
  const Bytes base = MakeBase(2 * kMiB + 777);
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    EXPECT_TRUE(Same(base, image.ReadAll()));  // the last page is cached
    image.Truncate(5 * kMiB);
    EXPECT_TRUE(Same(base + Zeros(5 * kMiB - base.size()), image.ReadAll()));
    image.DropPages();
    EXPECT_TRUE(Same(base + Zeros(5 * kMiB - base.size()), image.ReadAll()));
  }
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", base + Zeros(5 * kMiB - base.size())));
}

TEST_P(Size, ShrinkingAndGrowingNeverBringsBaseContentBack) {
  const Bytes base = MakeBase(4 * kMiB + 99);
  auto mount = MountInThisWay();
  for (const uint64_t cut : {uint64_t{0}, uint64_t{1}, uint64_t{4095}, uint64_t{4096},
                             uint64_t{65'536}, uint64_t{1'000'003}, 2 * kMiB, 4 * kMiB}) {
    SCOPED_TRACE(cut);
    const Path path = *mount / ("cut" + std::to_string(cut));
    Touch(path);
    const File image(path);
    if (cut % 2 == 0) {
      EXPECT_TRUE(Same(base, image.ReadAll()));
    }
    image.Truncate(cut);
    EXPECT_EQ(image.Size(), cut);
    EXPECT_TRUE(Same(base.substr(0, cut), image.ReadAll()));
    image.Truncate(base.size() + 5000);
    const Bytes expected = base.substr(0, cut) + Zeros(base.size() + 5000 - cut);
    EXPECT_TRUE(Same(expected, image.ReadAll()));
    image.DropPages();
    EXPECT_TRUE(Same(expected, image.ReadAll()));
  }
  mount->Remount();
  for (const uint64_t cut : {uint64_t{0}, uint64_t{4095}, uint64_t{65'536}, uint64_t{1'000'003}}) {
    EXPECT_TRUE(Holds(*mount / ("cut" + std::to_string(cut)),
                      base.substr(0, cut) + Zeros(base.size() + 5000 - cut)));
  }
}

TEST_P(Size, ShrinkingAndGrowingNeverBringsOldDataBack) {
  const Bytes base = MakeBase(4 * kMiB);
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  Bytes expected = base;
  {
    const File image(*mount / "dom1");
    const Bytes old = RandomBytes(3 * kMiB, 2);
    image.Write(500'000, old);
    image.Sync();
    image.Truncate(1'234'567);
    expected.replace(500'000, 734'567, old.substr(0, 734'567));
    expected.resize(1'234'567);
    image.Truncate(6 * kMiB);
    expected.resize(6 * kMiB);
    EXPECT_TRUE(Same(expected, image.ReadAll()));
    // A small write into what was taken away fills its chunk with zeros, not with what was there.
    image.Write(3 * kMiB + 5, "new");
    expected.replace(3 * kMiB + 5, 3, "new");
    EXPECT_TRUE(Same(expected, image.ReadAll()));
    image.DropPages();
    EXPECT_TRUE(Same(expected, image.ReadAll()));
  }
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

TEST_P(Size, WhatWasCutOffStaysAwayOverRemountsInBetween) {
  const Bytes base = MakeBase(4 * kMiB);
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  WriteFile(*mount / "dom2", RandomBytes(4 * kMiB, 5));
  mount->Remount();
  Must(Execute({"truncate", "-s", "1000001", (*mount / "dom1").string()}));
  Must(Execute({"truncate", "-s", "1000001", (*mount / "dom2").string()}));
  mount->Remount();
  Must(Execute({"truncate", "-s", "4M", (*mount / "dom1").string()}));
  Must(Execute({"truncate", "-s", "4M", (*mount / "dom2").string()}));
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", base.substr(0, 1'000'001) + Zeros(4 * kMiB - 1'000'001)));
  EXPECT_TRUE(Holds(*mount / "dom2",
                    RandomBytes(4 * kMiB, 5).substr(0, 1'000'001) + Zeros(4 * kMiB - 1'000'001)));
}

TEST_P(Size, ShrinkingGivesSpaceBack) {
  MakeBase(4 * kMiB);
  auto mount = MountInThisWay();
  WriteFile(*mount / "dom1", RandomBytes(8 * kMiB, 2));
  EXPECT_TRUE(Eventually([&] { return AllocatedBytes(*mount / "dom1") >= 8 * kMiB; }));
  Must(Execute({"truncate", "-s", "2M", (*mount / "dom1").string()}));
  Must(Cowfs({"sync", MountPoint()}));
  EXPECT_TRUE(Eventually([&] { return AllocatedBytes(*mount / "dom1") <= 2 * kMiB + 64 * kKiB; }))
      << AllocatedBytes(*mount / "dom1");
}

TEST_P(Size, ResizeByCommandIsSeenAtOnceWithPagesCached) {
  const Bytes base = MakeBase(4 * kMiB);
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  Bytes expected = base;
  {
    const File image(*mount / "dom1");
    image.Write(3 * kMiB + 1, "old data");
    expected.replace(3 * kMiB + 1, 8, "old data");
    EXPECT_TRUE(Same(expected, image.ReadAll()));
  }
  const auto resize = [&](const std::string& size) {
    Must(Cowfs({"resize", *mount / "dom1", size}));
  };
  resize("6M");
  expected.resize(6 * kMiB);
  EXPECT_EQ(StatOf(*mount / "dom1").st_size, 6 * kMiB);
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
  resize("1000001");
  expected.resize(1'000'001);
  EXPECT_EQ(StatOf(*mount / "dom1").st_size, 1'000'001);
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
  resize("5MiB");
  expected.resize(5 * kMiB);
  EXPECT_EQ(StatOf(*mount / "dom1").st_size, 5 * kMiB);
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

TEST_P(Size, ResizeOfAnOpenImageIsSeenByItsOpener) {
  const Bytes base = MakeBase(4 * kMiB);
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  EXPECT_TRUE(Same(base, image.ReadAll()));
  Must(Cowfs({"resize", *mount / "dom1", "6M"}));
  EXPECT_EQ(image.Size(), 6 * kMiB);
  EXPECT_TRUE(Same(base + Zeros(2 * kMiB), image.ReadAll()));
  image.Write(6 * kMiB - 4, "last");
  EXPECT_EQ(image.Size(), 6 * kMiB);
  Must(Cowfs({"resize", *mount / "dom1", "1M", "--force"}));
  EXPECT_EQ(image.Size(), kMiB);
  EXPECT_TRUE(Same(base.substr(0, kMiB), image.ReadAll()));
}

INSTANTIATE_TEST_SUITE_P(Ways, Size,
                         testing::Values(Way{"writeback", "4K"}, Way{"writeback", "64K"},
                                         Way{"writeback", "2M"}, Way{"none", "4K"}),
                         [](const testing::TestParamInfo<Way>& way) { return NameOf(way.param); });

class Sizes : public MountTest {};

TEST_F(Sizes, AnOddBaseShowsItsExactSize) {
  for (const uint64_t size : {uint64_t{1}, uint64_t{511}, uint64_t{4097}, 3 * kMiB + 513}) {
    SCOPED_TRACE(size);
    const Bytes base = MakeBase(size, static_cast<uint32_t>(size));
    auto mount = MountBase({"--chunk-size", "64K"});
    Touch(*mount / "dom1");
    EXPECT_EQ(StatOf(*mount / "dom1").st_size, size);
    EXPECT_TRUE(Holds(*mount / "dom1", base));
    {
      const File image(*mount / "dom1");
      image.Write(size - 1, "AB");
      EXPECT_EQ(image.Size(), size + 1);
    }
    mount->Remount();
    EXPECT_TRUE(Holds(*mount / "dom1", base.substr(0, size - 1) + "AB"));
    mount->Unmount();
    std::filesystem::remove_all(Store());
  }
}

TEST_F(Sizes, AnOddBaseWithFullSectorsIsWholeInALoopDevice) {
  const Bytes base = MakeBase(3 * kMiB + 512);
  auto mount = MountBase({"--chunk-size", "64K"});
  Touch(*mount / "dom1");
  const LoopDevice loop(*mount / "dom1");
  EXPECT_EQ(Sha256(loop.device()), Sha256(Base()));
  {
    const File disk(loop.device());
    disk.Write(3 * kMiB, RandomBytes(512, 9));
    disk.Sync();
  }
  EXPECT_TRUE(Holds(*mount / "dom1", base.substr(0, 3 * kMiB) + RandomBytes(512, 9)));
}

TEST_F(Sizes, ALoopDeviceLearnsANewSize) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const LoopDevice loop(*mount / "dom1");
  Must(Cowfs({"resize", *mount / "dom1", "32M"}));
  Must(Execute({"losetup", "-c", loop.device()}));
  EXPECT_EQ(Must(Execute({"blockdev", "--getsize64", loop.device()})), "33554432\n");
}

}  // namespace
}  // namespace cowfs::e2e
