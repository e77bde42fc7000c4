// Base and store on every host file system, block devices as base, and guests' file systems under
// fio's verification.

#include <gtest/gtest.h>

#include <cstdio>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class Host : public MountTest, public testing::WithParamInterface<std::string> {};

TEST_P(Host, CarriesBaseAndStore) {
  const HostFileSystem host(Scratch(), GetParam());
  Bytes expected = RandomBytes(9 * kMiB + 777, 1);
  const Path base = host.path() / "base.img";
  WriteFile(base, expected);
  const std::string sum = Sha256(base);
  Mount mount(base, MountPoint());
  Touch(mount / "dom1");
  WriteFile(mount / "dom2", RandomBytes(3 * kMiB, 2));
  Must(Execute({"cp", (mount / "dom2").string(), (mount / "dom3").string()}));
  const uint64_t kept = 4 * kMiB;
  {
    const File image(mount / "dom1");
    image.Write(12'345, RandomBytes(5 * kMiB, 3));
    expected.replace(12'345, 5 * kMiB, RandomBytes(5 * kMiB, 3));
    image.Sync();
    image.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kMiB, 2 * kMiB);
    expected.replace(kMiB, 2 * kMiB, Zeros(2 * kMiB));
    image.Truncate(kept);
    image.Truncate(6 * kMiB);
    expected.resize(kept);
    expected.resize(6 * kMiB);
    EXPECT_TRUE(Same(expected, image.ReadAll()));
  }
  mount.Remount();
  EXPECT_TRUE(Holds(mount / "dom1", expected));
  EXPECT_TRUE(Holds(mount / "dom3", RandomBytes(3 * kMiB, 2)));
  EXPECT_EQ(Sha256(base), sum);
  {
    const File image(mount / "dom1");
    image.Write(kMiB + 1, "flushed");
    expected.replace(kMiB + 1, 7, "flushed");
    image.Sync();
    mount.Kill();
  }
  Must(Cowfs({"umount", MountPoint()}));
  mount.MountAgain();
  EXPECT_TRUE(Holds(mount / "dom1", expected));
  const LoopDevice loop(mount / "dom1", {"--direct-io=on"});
  EXPECT_EQ(Sha256(loop.device()), Sha256(mount / "dom1"));
}

INSTANTIATE_TEST_SUITE_P(Types, Host, testing::Values("ext4", "xfs", "btrfs", "tmpfs"),
                         [](const testing::TestParamInfo<std::string>& type) {
                           return type.param;
                         });

class Bases : public MountTest {};

TEST_F(Bases, ABlockDeviceServesWithAStoreOfItsOwn) {
  const Bytes base = MakeBase(8 * kMiB + 512);
  const LoopDevice golden(Base(), {"-r"});
  Mount mount(golden.device(), MountPoint(), {"--store", Scratch() / "golden.cowfs"});
  Touch(mount / "dom1");
  EXPECT_EQ(StatOf(mount / "dom1").st_size, base.size());
  EXPECT_TRUE(Holds(mount / "dom1", base));
  File(mount / "dom1").Write(100, "own");
  mount.Remount();
  Bytes expected = base;
  expected.replace(100, 3, "own");
  EXPECT_TRUE(Holds(mount / "dom1", expected));
  EXPECT_TRUE(Holds(Base(), base));
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["base"], golden.device());
  mount.Unmount();
}

TEST_F(Bases, ABlockDeviceWithoutAStoreIsRefusedAndTheMessageSaysWhy) {
  MakeBase();
  const LoopDevice golden(Base(), {"-r"});
  std::filesystem::create_directory(MountPoint());
  const Undo undo = UnmountCowfsAtEnd(MountPoint());
  const Result result = Cowfs({"mount", golden.device(), MountPoint()});
  EXPECT_TRUE(result.status == 1 || result.status == 2) << result.status;
  EXPECT_TRUE(Mentions(result.err, "--store"));
  EXPECT_TRUE(Mentions(result.err, golden.device()));
  EXPECT_TRUE(Mentions(result.err, "/dev"));
  EXPECT_FALSE(std::filesystem::exists(golden.device() + ".cowfs"));
}

TEST_F(Bases, TheBaseIsNeverWrittenNorItsTimesChanged) {
  MakeBase();
  const timespec times[2] = {{1'000'000'000, 1}, {1'100'000'000, 2}};
  ASSERT_EQ(utimensat(AT_FDCWD, Base().c_str(), times, 0), 0);
  const struct stat before = StatOf(Base());
  auto mount = MountBase();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    image.ReadAll();
    image.Write(5, RandomBytes(kMiB, 3));
    image.Sync();
  }
  mount->Remount();
  ReadFile(*mount / "dom1");
  mount->Unmount();
  const struct stat after = StatOf(Base());
  EXPECT_EQ(after.st_mtim.tv_sec, before.st_mtim.tv_sec);
  EXPECT_EQ(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
  EXPECT_EQ(after.st_ctim.tv_sec, before.st_ctim.tv_sec);
  EXPECT_EQ(after.st_ctim.tv_nsec, before.st_ctim.tv_nsec);
  EXPECT_EQ(after.st_atim.tv_sec, before.st_atim.tv_sec) << "O_NOATIME would have helped";
}

TEST_F(Bases, AReadOnlyBaseServes) {
  const Bytes base = MakeBase();
  ASSERT_EQ(chmod(Base().c_str(), 0444), 0);
  auto mount = MountBase();
  Touch(*mount / "dom1");
  EXPECT_TRUE(Holds(*mount / "dom1", base));
}

TEST_F(Bases, AStoreInMemoryIsMadeWithAWarning) {
  MakeBase();
  for (const std::string type : {"tmpfs", "ramfs"}) {
    const OtherMount memory(type, Scratch() / type, {"-t", type});
    std::filesystem::create_directory(MountPoint());
    const Undo undo = UnmountCowfsAtEnd(MountPoint());
    const Path store = memory.path() / "base.cowfs";
    const Result result = Cowfs({"mount", Base(), MountPoint(), "--store", store});
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_TRUE(Mentions(result.err, type));
    EXPECT_TRUE(Mentions(result.err, store));
    Must(Cowfs({"umount", MountPoint()}));
  }
}

TEST_F(Bases, TheStoreIsPrivateToItsOwner) {
  MakeBase();
  auto mount = MountBase();
  WriteFile(*mount / "dom1", "x");
  EXPECT_EQ(StatOf(Store()).st_mode & 07777U, 0700U);
  size_t files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(Store())) {
    const struct stat status = StatOf(entry.path());
    EXPECT_EQ(status.st_mode & 07777U, S_ISDIR(status.st_mode) ? 0700U : 0600U) << entry.path();
    files += S_ISREG(status.st_mode) ? 1 : 0;
  }
  EXPECT_GE(files, 3U);  // catalog, lock, a CoW file
}

struct Guest {
  std::string file_system;
  std::string direct_io;  // of the loop device: on or off
  std::string chunk;
  std::string cache = "writeback";
};

void PrintTo(const Guest& guest, std::ostream* out) {
  *out << guest.file_system << "_" << guest.direct_io << "_" << guest.chunk;
}

class Verified : public MountTest, public testing::WithParamInterface<Guest> {
 protected:
  // Runs fio's jobs on the directory with random and sequential, small and large writes. What
  // follows the mode is one of fio's options.
  static void Fio(const Path& directory, const std::string& mode) {
    const std::string common =
        "fio --directory=" + directory.string() +
        " --verify=crc32c --verify_fatal=1 --verify_dump=0 --verify_state_save=0 --thread "
        "--group_reporting --ioengine=libaio --fallocate=none --randseed=7 " +
        mode;
    const std::string jobs =
        " --name=random --rw=randwrite --bs=4k --size=12M --iodepth=16 --direct=1"
        " --name=unaligned --rw=randwrite --bs=3k --size=6M --direct=0"
        " --name=sequential --rw=write --bs=256k --size=16M --iodepth=4 --direct=1";
    const Result result = Shell(common + jobs, {.timeout = std::chrono::seconds(120)});
    EXPECT_EQ(result.status, 0) << mode << '\n' << result.err << result.out;
  }
};

TEST_P(Verified, FioFindsWhatItWroteAlsoAfterARemount) {
  const Guest& guest = GetParam();
  if (guest.file_system == "xfs") {
    MakeXfsImage(Base(), 320 * kMiB);
  } else {
    MakeTree(Scratch() / "tree");
    MakeExt4Image(Base(), 96 * kMiB, Scratch() / "tree");
  }
  const std::string sum = Sha256(Base());
  auto mount = MountBase({"--chunk-size", guest.chunk, "-o", "cache=" + guest.cache});
  Touch(*mount / "dom1");
  const Arguments loop_arguments{"--direct-io=" + guest.direct_io};
  {
    const LoopDevice loop(*mount / "dom1", loop_arguments);
    OtherMount disk(loop.device(), Scratch() / "disk");
    Fio(disk.path(), "--do_verify=1 --end_fsync=1");
    disk.Unmount();
  }
  mount->Remount();
  {
    const LoopDevice loop(*mount / "dom1", loop_arguments);
    OtherMount disk(loop.device(), Scratch() / "disk");
    Fio(disk.path(), "--verify_only");
    disk.Unmount();
    const Result check = guest.file_system == "xfs" ? Execute({"xfs_repair", "-n", loop.device()})
                                                    : Execute({"e2fsck", "-fn", loop.device()});
    EXPECT_EQ(check.status, 0) << check.out << check.err;
  }
  EXPECT_EQ(Sha256(Base()), sum);
}

INSTANTIATE_TEST_SUITE_P(Guests, Verified,
                         testing::Values(Guest{"ext4", "off", "4K"}, Guest{"ext4", "on", "4K"},
                                         Guest{"xfs", "off", "4K"}, Guest{"xfs", "on", "4K"},
                                         Guest{"ext4", "on", "64K"}, Guest{"xfs", "off", "2M"},
                                         Guest{"ext4", "off", "64K", "none"}),
                         [](const testing::TestParamInfo<Guest>& guest) {
                           return guest.param.file_system + "_direct_" + guest.param.direct_io +
                                  "_" + guest.param.chunk + "_" + guest.param.cache;
                         });

}  // namespace
}  // namespace cowfs::e2e
