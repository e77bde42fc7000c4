// Giving space back, and telling truly where there is data.

#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <cerrno>
#include <tuple>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class Space : public MountTest, public testing::WithParamInterface<std::string> {
 protected:
  std::unique_ptr<Mount> MountWithChunks() const { return MountBase({"--chunk-size", GetParam()}); }
  // The bytes that the store's CoW files have on the host.
  uint64_t HostBytes() const {
    uint64_t bytes = 0;
    for (const auto& file : std::filesystem::directory_iterator(Store() / "layers")) {
      bytes += AllocatedBytes(file.path());
    }
    return bytes;
  }
};

TEST_P(Space, PunchedAndZeroedRangesReadAsZeros) {
  Bytes expected = MakeBase(6 * kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    const Bytes own = RandomBytes(2 * kMiB, 3);
    image.Write(kMiB, own);
    expected.replace(kMiB, own.size(), own);
    // Over base content, over own content, over both; aligned and not.
    for (const auto& [mode, offset, length] : std::vector<std::tuple<int, uint64_t, uint64_t>>{
             {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5000, 100},
             {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100'001, 200'002},
             {FALLOC_FL_ZERO_RANGE, kMiB + 65'536, 131'072},
             {FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 2 * kMiB + 1, 300'000},
             {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * kMiB - 100'000, 200'000}}) {
      image.Allocate(mode, offset, length);
      expected.replace(offset, length, Zeros(length));
      EXPECT_TRUE(Same(expected, image.ReadAll())) << "mode " << mode << " offset " << offset;
    }
    image.DropPages();
    EXPECT_TRUE(Same(expected, image.ReadAll()));
  }
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

TEST_P(Space, PunchingAndZeroingGiveSpaceBack) {
  MakeBase();
  auto mount = MountWithChunks();
  for (const int mode : {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE}) {
    Touch(*mount / "dom1");
    File image(*mount / "dom1");
    image.Write(0, RandomBytes(8 * kMiB, 4));
    image.Sync();
    EXPECT_TRUE(Eventually([&] { return Takes(8 * kMiB, image.AllocatedBytes()); }))
        << image.AllocatedBytes();
    EXPECT_GE(HostBytes(), 8 * kMiB);
    image.Allocate(mode, 2 * kMiB, 4 * kMiB);
    image.Sync();
    EXPECT_TRUE(Eventually([&] { return Takes(4 * kMiB, image.AllocatedBytes()); }))
        << image.AllocatedBytes();
    EXPECT_LT(HostBytes(), 5 * kMiB);
    image.Allocate(mode, 0, 8 * kMiB);
    Must(Cowfs({"sync", MountPoint()}));
    EXPECT_TRUE(Eventually([&] { return Takes(0, image.AllocatedBytes()); }))
        << image.AllocatedBytes();
    EXPECT_LT(HostBytes(), 256 * kKiB);
    EXPECT_TRUE(Same(Zeros(8 * kMiB), image.ReadAll()));
    image.Close();
    std::filesystem::remove(*mount / "dom1");
  }
}

TEST_P(Space, ZeroRangePastTheEndGrowsUnlessTheSizeIsKept) {
  const Bytes base = MakeBase(2 * kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  image.Allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, kMiB, 4 * kMiB);
  EXPECT_EQ(image.Size(), 2 * kMiB);
  EXPECT_TRUE(Same(base.substr(0, kMiB) + Zeros(kMiB), image.ReadAll()));
  image.Allocate(FALLOC_FL_ZERO_RANGE, kMiB, 4 * kMiB);
  EXPECT_EQ(image.Size(), 5 * kMiB);
  EXPECT_TRUE(Same(base.substr(0, kMiB) + Zeros(4 * kMiB), image.ReadAll()));
}

TEST_P(Space, PlainAllocationChangesNoByteAndGrowsTheImage) {
  Bytes expected = MakeBase(2 * kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    image.Write(100, "own");
    expected.replace(100, 3, "own");
    image.Allocate(0, 0, kMiB);
    EXPECT_TRUE(Same(expected, image.ReadAll()));
    image.Allocate(0, kMiB, 3 * kMiB + 17);
    expected.resize(4 * kMiB + 17);
    EXPECT_EQ(image.Size(), expected.size());
    EXPECT_TRUE(Same(expected, image.ReadAll()));
    image.Allocate(FALLOC_FL_KEEP_SIZE, 0, 8 * kMiB);
    EXPECT_EQ(image.Size(), expected.size());
    image.Truncate(8 * kMiB);
    expected.resize(8 * kMiB);
    EXPECT_TRUE(Same(expected, image.ReadAll()));
    image.DropPages();
    EXPECT_TRUE(Same(expected, image.ReadAll()));
  }
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

TEST_P(Space, AllocationOfMoreThanThereIsTakesNothing) {
  MakeBase(kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  const uint64_t free = std::filesystem::space(Store()).available;
  const Result result =
      Execute({"fallocate", "-l", std::to_string(4 * free), (*mount / "dom1").string()});
  EXPECT_NE(result.status, 0);
  EXPECT_TRUE(Mentions(result.err, "No space left"));
  EXPECT_EQ(StatOf(*mount / "dom1").st_size, static_cast<off_t>(kMiB));
  EXPECT_LE(HostBytes(), 64 * kKiB);
}

TEST_P(Space, OtherKindsOfAllocationAreRefused) {
  const Bytes base = MakeBase(2 * kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  for (const int mode : {FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE}) {
    EXPECT_EQ(fallocate(image.fd(), mode, 0, 4096), -1);
    EXPECT_EQ(errno, EOPNOTSUPP);
  }
  EXPECT_TRUE(Same(base, image.ReadAll()));
}

TEST_P(Space, BlkdiscardOnALoopDeviceGivesSpaceBack) {
  const Bytes base = MakeBase();
  auto mount = MountWithChunks();
  for (const Arguments& arguments : {Arguments{}, Arguments{"--direct-io=on"}}) {
    Touch(*mount / "dom1");
    {
      const LoopDevice loop(*mount / "dom1", arguments);
      {
        const File disk(loop.device());
        disk.Write(0, RandomBytes(6 * kMiB, 7));
        disk.Sync();
      }
      const std::string name = Path(loop.device()).filename().string();
      const uint64_t granularity =
          std::stoull(ReadFile("/sys/block/" + name + "/queue/discard_granularity"));
      EXPECT_EQ(granularity, CowfsJson({"info", MountPoint()})["chunk_size"]);
      Must(Execute({"blkdiscard", "-o", "2097152", "-l", "4194304", loop.device()}));
      EXPECT_TRUE(Same(
          RandomBytes(6 * kMiB, 7).substr(0, 2 * kMiB) + Zeros(4 * kMiB) + base.substr(6 * kMiB),
          File(loop.device()).Read(0, base.size())));
      Must(Execute({"blkdiscard", "-z", "-o", "0", "-l", "1048576", loop.device()}));
    }
    Must(Cowfs({"sync", MountPoint()}));
    EXPECT_TRUE(Eventually([&] { return AllocatedBytes(*mount / "dom1") <= 2 * kMiB + 64 * kKiB; }))
        << AllocatedBytes(*mount / "dom1");
    EXPECT_LT(HostBytes(), 3 * kMiB);
    EXPECT_TRUE(Holds(*mount / "dom1", Zeros(kMiB) + RandomBytes(6 * kMiB, 7).substr(kMiB, kMiB) +
                                           Zeros(4 * kMiB) + base.substr(6 * kMiB)));
    std::filesystem::remove(*mount / "dom1");
  }
}

TEST_P(Space, RemovingAnImageGivesItsSpaceBack) {
  MakeBase();
  auto mount = MountWithChunks();
  WriteFile(*mount / "dom1", RandomBytes(8 * kMiB, 4));
  EXPECT_GE(HostBytes(), 8 * kMiB);
  Must(Execute({"rm", (*mount / "dom1").string()}));
  EXPECT_TRUE(Eventually([&] { return HostBytes() == 0; })) << HostBytes();
}

TEST_P(Space, AnImageUnlinkedWhileOpenIsFreedAfterTheServersDeath) {
  MakeBase();
  auto mount = MountWithChunks();
  {
    WriteFile(*mount / "dom1", RandomBytes(8 * kMiB, 4));
    WriteFile(*mount / "dom2", "stays");
    const File image(*mount / "dom1");
    std::filesystem::remove(*mount / "dom1");
    EXPECT_GE(HostBytes(), 8 * kMiB);
    mount->Kill();
  }
  Must(Cowfs({"umount", MountPoint()}));
  mount->MountAgain();
  EXPECT_FALSE(std::filesystem::exists(*mount / "dom1"));
  EXPECT_EQ(ReadFile(*mount / "dom2"), "stays");
  EXPECT_TRUE(Eventually([&] { return HostBytes() < 4 * kMiB; })) << HostBytes();
}

TEST_P(Space, HolesAreTrueHolesAndAllElseIsData) {
  const Bytes base = MakeBase(4 * kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    image.Truncate(16 * kMiB);
    image.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * kMiB, 2 * kMiB);
    image.Write(8 * kMiB, RandomBytes(2 * kMiB, 8));
  }
  const File image(*mount / "dom1", O_RDONLY);
  const auto seek = [&](uint64_t from, int whence) {
    return lseek(image.fd(), static_cast<off_t>(from), whence);
  };
  // The release of the writer reaches the server a little after close(2).
  EXPECT_TRUE(Eventually([&] { return seek(0, SEEK_HOLE) == static_cast<off_t>(2 * kMiB); }))
      << seek(0, SEEK_HOLE);
  EXPECT_EQ(seek(0, SEEK_DATA), 0);  // falls through to the base: data
  EXPECT_EQ(seek(2 * kMiB, SEEK_DATA), static_cast<off_t>(8 * kMiB));
  EXPECT_EQ(seek(3 * kMiB, SEEK_HOLE), static_cast<off_t>(3 * kMiB));
  EXPECT_EQ(seek(8 * kMiB, SEEK_HOLE), static_cast<off_t>(10 * kMiB));
  EXPECT_EQ(seek(10 * kMiB, SEEK_DATA), -1);
  EXPECT_EQ(errno, ENXIO);
  EXPECT_EQ(seek(16 * kMiB, SEEK_HOLE), -1);
  EXPECT_EQ(errno, ENXIO);
  EXPECT_EQ(seek(15 * kMiB, SEEK_HOLE), static_cast<off_t>(15 * kMiB));
}

TEST_P(Space, WhileAnImageIsOpenForWritingItsOnlyHoleIsTheEnd) {
  MakeBase(4 * kMiB);
  auto mount = MountWithChunks();
  const File image(*mount / "dom1", O_RDWR | O_CREAT | O_TRUNC);
  image.Truncate(8 * kMiB);
  // Dirty in the kernel, unknown to the server: must not be passed over.
  image.Write(4 * kMiB, "dirty");
  EXPECT_EQ(lseek(image.fd(), 0, SEEK_DATA), 0);
  EXPECT_EQ(lseek(image.fd(), 0, SEEK_HOLE), static_cast<off_t>(8 * kMiB));
  EXPECT_EQ(lseek(image.fd(), 5 * kMiB, SEEK_DATA), static_cast<off_t>(5 * kMiB));
  const File reader(*mount / "dom1", O_RDONLY);
  EXPECT_EQ(lseek(reader.fd(), 0, SEEK_HOLE), static_cast<off_t>(8 * kMiB));
}

TEST_P(Space, OwnBytesAreTheSameEverywhere) {
  MakeBase();
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    image.Write(3 * kMiB, RandomBytes(100'000, 1));
    image.Sync();
  }
  const uint64_t chunk = CowfsJson({"info", MountPoint()})["chunk_size"];
  const uint64_t own = CowfsJson({"info", *mount / "dom1"})["own_bytes"];
  EXPECT_TRUE(
      Takes((3 * kMiB + 100'000 + chunk - 1) / chunk * chunk - 3 * kMiB / chunk * chunk, own));
  EXPECT_EQ(CowfsJson({"ls", MountPoint()})[0]["own_bytes"], own);
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["own_bytes"], own);
  EXPECT_TRUE(Eventually([&] { return AllocatedBytes(*mount / "dom1") == own; }))
      << AllocatedBytes(*mount / "dom1") << " instead of " << own;
  EXPECT_EQ(std::stoull(Must(Execute({"du", "-B1", (*mount / "dom1").string()}))), own);
  EXPECT_EQ(std::stoull(Must(Execute({"ls", "-s", "--block-size=1", (*mount / "dom1").string()}))),
            own);
  EXPECT_EQ(Must(Execute({"getfattr", "--absolute-names", "--only-values", "-n",
                          "user.cowfs.own_bytes", (*mount / "dom1").string()})),
            std::to_string(own));
  mount->Remount();
  EXPECT_EQ(AllocatedBytes(*mount / "dom1"), own);
}

INSTANTIATE_TEST_SUITE_P(Chunks, Space, testing::Values("4K", "64K", "2M"),
                         [](const testing::TestParamInfo<std::string>& way) { return way.param; });

}  // namespace
}  // namespace cowfs::e2e
