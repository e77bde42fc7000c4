// Reading and writing an image in every way that the kernel offers.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <random>
#include <thread>

#include "tests/e2e/ways.h"

namespace cowfs::e2e {
namespace {

class Io : public WayTest {};

TEST_P(Io, WritesOfAnyOffsetAndLengthReadBackAmongBaseContent) {
  Bytes expected = MakeBase(6 * kMiB + 333);
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    uint32_t seed = 10;
    for (const auto& [offset, length] :
         std::vector<std::pair<uint64_t, uint64_t>>{{0, 1},
                                                    {4095, 2},
                                                    {5000, 10'000},
                                                    {65'536, 65'536},
                                                    {131'071, 65'538},
                                                    {2 * kMiB - 1, kMiB + 2},
                                                    {5 * kMiB, 300 * kKiB},
                                                    {6 * kMiB + 300, 100}}) {
      const Bytes bytes = RandomBytes(length, ++seed);
      image.Write(offset, bytes);
      if (offset + length > expected.size()) {
        expected.resize(offset + length);
      }
      expected.replace(offset, length, bytes);
      EXPECT_TRUE(Same(expected.substr(offset, length), image.Read(offset, length)));
    }
    EXPECT_TRUE(Same(expected, image.ReadAll()));
    EXPECT_EQ(lseek(image.fd(), 1234, SEEK_SET), 1234);
    char small[100];
    EXPECT_EQ(read(image.fd(), small, sizeof(small)), 100);  // read(2) and write(2) at the position
    EXPECT_TRUE(Same(expected.substr(1234, 100), Bytes(small, 100)));
    EXPECT_EQ(write(image.fd(), "position", 8), 8);
    expected.replace(1334, 8, "position");
    EXPECT_EQ(image.Read(expected.size(), 10), "");
    EXPECT_EQ(image.Read(expected.size() + kGiB, 10), "");
    image.DropPages();
    EXPECT_TRUE(Same(expected, image.ReadAll()));
  }
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

TEST_P(Io, DirectReadsAndWritesAgreeWithBufferedOnes) {
  Bytes expected = MakeBase(4 * kMiB);
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  const File direct(*mount / "dom1", O_RDWR | O_DIRECT);
  const File buffered(*mount / "dom1", O_RDWR);
  DirectBuffer buffer(kMiB);
  for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
           {0, 4096}, {8192, 512}, {12'288 + 512, 1024}, {kMiB + 4096, kMiB}, {3 * kMiB, 65'536}}) {
    ASSERT_EQ(pwrite(direct.fd(), buffer.data(), length, static_cast<off_t>(offset)),
              static_cast<ssize_t>(length));
    expected.replace(offset, length, Bytes(buffer.data(), length));
  }
  EXPECT_TRUE(Same(expected, buffered.ReadAll()));
  const Bytes own = RandomBytes(300'000, 8);
  buffered.Write(2 * kMiB + 100, own);
  expected.replace(2 * kMiB + 100, own.size(), own);
  for (uint64_t at = 0; at < expected.size(); at += kMiB) {
    ASSERT_EQ(pread(direct.fd(), buffer.data(), kMiB, static_cast<off_t>(at)),
              static_cast<ssize_t>(kMiB));
    EXPECT_TRUE(Same(expected.substr(at, kMiB), Bytes(buffer.data(), kMiB)));
  }
  EXPECT_TRUE(Same(expected, buffered.ReadAll()));
}

TEST_P(Io, AppendersWriteAtTheEnd) {
  MakeBase();
  auto mount = MountInThisWay();
  {
    const File one(*mount / "log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND);
    const File two(*mount / "log", O_WRONLY | O_APPEND);
    for (int i = 0; i < 3; ++i) {
      ASSERT_EQ(write(one.fd(), "one ", 4), 4);
      ASSERT_EQ(write(two.fd(), "two ", 4), 4);
    }
  }
  EXPECT_EQ(ReadFile(*mount / "log"), "one two one two one two ");
  mount->Remount();
  EXPECT_EQ(ReadFile(*mount / "log"), "one two one two one two ");
}

TEST_P(Io, AppendingToAnImageOfTheBaseGrowsIt) {
  const Bytes base = MakeBase(kMiB + 100);
  auto mount = MountInThisWay();
  Must(Shell("printf tail >> " + Quoted(*mount / "dom1")));
  EXPECT_TRUE(Holds(*mount / "dom1", base + "tail"));
}

TEST_P(Io, OpeningWithTruncateEmptiesAnImage) {
  MakeBase();
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  {
    const File writer(*mount / "dom1");
    writer.Write(100, RandomBytes(100'000, 4));
    writer.Sync();
  }
  const File truncated(*mount / "dom1", O_RDWR | O_TRUNC);
  EXPECT_EQ(truncated.Size(), 0U);
  truncated.Write(50'000, "x");
  EXPECT_TRUE(Same(Zeros(50'000) + "x", truncated.ReadAll()));
}

TEST_P(Io, ManyOpenersSeeEachOthersWrites) {
  Bytes expected = MakeBase(4 * kMiB);
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  std::vector<File> files(8);
  for (File& file : files) {
    file = File(*mount / "dom1");
  }
  std::vector<std::thread> writers;
  writers.reserve(files.size());
  for (uint32_t i = 0; i < files.size(); ++i) {
    // Neighbouring pieces that share chunks and pages.
    const uint64_t offset = 100'000 + uint64_t{i} * 50'001;
    expected.replace(offset, 50'001, RandomBytes(50'001, 20 + i));
    writers.emplace_back([&files, i, offset] {
      const Bytes bytes = RandomBytes(50'001, 20 + i);
      for (uint64_t at = 0; at < bytes.size(); at += 1000) {
        files[i].Write(offset + at, bytes.substr(at, 1000));
      }
    });
  }
  for (std::thread& writer : writers) {
    writer.join();
  }
  for (const File& file : files) {
    EXPECT_TRUE(Same(expected, file.ReadAll()));
  }
  files.clear();
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

TEST_P(Io, AnUnlinkedImageLivesWhileItIsOpen) {
  const Bytes base = MakeBase();
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  const Bytes own = RandomBytes(kMiB, 6);
  File image(*mount / "dom1");
  image.Write(0, own);
  image.Sync();
  std::filesystem::remove(*mount / "dom1");
  EXPECT_FALSE(std::filesystem::exists(*mount / "dom1"));
  EXPECT_EQ(image.Stat().st_nlink, 0U);
  image.Write(kMiB, own);
  image.Sync();
  image.Truncate(5 * kMiB);
  EXPECT_TRUE(Same(own + own + base.substr(2 * kMiB, 3 * kMiB), image.ReadAll()));

  // The name is free for another image, which has nothing of the old one.
  Touch(*mount / "dom1");
  EXPECT_TRUE(Holds(*mount / "dom1", base));
  EXPECT_NE(StatOf(*mount / "dom1").st_ino, image.Stat().st_ino);
  std::filesystem::remove(*mount / "dom1");

  image.Close();
  EXPECT_TRUE(Eventually([&] { return std::filesystem::is_empty(Store() / "layers"); }))
      << "the space of an unlinked image did not come back after its last close";
}

TEST_P(Io, AnythingGoesAndReadsAsAPlainFileWould) {
  constexpr uint64_t kMaxSize = 6 * kMiB;
  Bytes expected = MakeBase(3 * kMiB + 1234);
  auto mount = MountInThisWay();
  Touch(*mount / "dom1");
  std::mt19937 random(GetParam().chunk.size() + GetParam().cache.size());
  const auto below = [&](uint64_t limit) { return limit == 0 ? 0 : random() % limit; };
  for (int round = 0; round < 4; ++round) {
    {
      const File image(*mount / "dom1");
      for (uint32_t step = 0; step < 120; ++step) {
        const uint64_t offset = below(kMaxSize - 400'000);
        const uint64_t length = 1 + below(step % 4 == 0 ? 400'000 : 9000);
        const uint64_t inside =
            offset >= expected.size() ? 0 : std::min(length, expected.size() - offset);
        switch (below(10)) {
          case 0:
          case 1:
          case 2:
          case 3: {
            const Bytes bytes = RandomBytes(length, static_cast<uint32_t>(random()));
            image.Write(offset, bytes);
            expected.resize(std::max<uint64_t>(expected.size(), offset + length));
            expected.replace(offset, length, bytes);
            break;
          }
          case 4:
            image.Truncate(offset);
            expected.resize(offset);
            break;
          case 5:
            image.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
            expected.replace(std::min<uint64_t>(offset, expected.size()), inside, Zeros(inside));
            break;
          case 6:
            image.Allocate(FALLOC_FL_ZERO_RANGE, offset, length);
            expected.resize(std::max<uint64_t>(expected.size(), offset + length));
            expected.replace(offset, length, Zeros(length));
            break;
          case 7:
            image.DropPages();
            break;
          case 8: {
            // To the end of the file and past it.
            image.Write(expected.size(), "end");
            expected += "end";
            break;
          }
          default:
            ASSERT_TRUE(Same(offset >= expected.size() ? "" : expected.substr(offset, length),
                             image.Read(offset, length)))
                << "round " << round << " step " << step << " offset " << offset;
        }
      }
      ASSERT_EQ(image.Size(), expected.size());
      ASSERT_TRUE(Same(expected, image.ReadAll())) << "round " << round;
    }
    mount->Remount();
    ASSERT_TRUE(Holds(*mount / "dom1", expected)) << "after remount " << round;
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, Io,
                         testing::Values(Way{"writeback", "4K"}, Way{"writeback", "64K"},
                                         Way{"writeback", "2M"}, Way{"none", "4K"},
                                         Way{"none", "64K"}),
                         [](const testing::TestParamInfo<Way>& way) { return NameOf(way.param); });

class Map {
 public:
  Map(const File& file, int protection, int flags, uint64_t size)
      : size_(size), at_(mmap(nullptr, size, protection, flags, file.fd(), 0)) {}
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;
  ~Map() {
    if (at_ != MAP_FAILED) {
      munmap(at_, size_);
    }
  }
  bool mapped() const { return at_ != MAP_FAILED; }
  char* data() const { return static_cast<char*>(at_); }

 private:
  uint64_t size_;
  void* at_;
};

class MemoryMap : public MountTest {};

TEST_F(MemoryMap, SharedWritesReachTheImage) {
  Bytes expected = MakeBase(4 * kMiB);
  auto mount = MountBase({"--chunk-size", "64K"});
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    const Map map(image, PROT_READ | PROT_WRITE, MAP_SHARED, expected.size());
    ASSERT_TRUE(map.mapped());
    EXPECT_TRUE(Same(expected, Bytes(map.data(), expected.size())));
    const Bytes own = RandomBytes(200'001, 4);
    own.copy(map.data() + 777'777, own.size());
    expected.replace(777'777, own.size(), own);
    EXPECT_TRUE(Same(expected, image.ReadAll()));
    ASSERT_EQ(msync(map.data(), expected.size(), MS_SYNC), 0);
    image.Write(10, "seen in the map");
    expected.replace(10, 15, "seen in the map");
    EXPECT_EQ(Bytes(map.data() + 10, 15), "seen in the map");
  }
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

TEST_F(MemoryMap, PrivateWritesDoNot) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  const Map map(image, PROT_READ | PROT_WRITE, MAP_PRIVATE, base.size());
  ASSERT_TRUE(map.mapped());
  EXPECT_TRUE(Same(base, Bytes(map.data(), base.size())));
  std::fill_n(map.data() + 5000, 9000, 'p');
  EXPECT_TRUE(Same(base, image.ReadAll()));
  EXPECT_EQ(map.data()[5000], 'p');
}

TEST_F(MemoryMap, WithoutCacheSharedMapsAreRefusedAndPrivateOnesWork) {
  const Bytes base = MakeBase();
  auto mount = MountBase({"-o", "cache=none"});
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  const Map shared(image, PROT_READ | PROT_WRITE, MAP_SHARED, base.size());
  EXPECT_FALSE(shared.mapped());
  EXPECT_EQ(errno, ENODEV);
  const Map own(image, PROT_READ, MAP_PRIVATE, base.size());
  ASSERT_TRUE(own.mapped());
  EXPECT_TRUE(Same(base, Bytes(own.data(), base.size())));
}

class Durability : public MountTest {};

TEST_F(Durability, FsyncAndFdatasyncSurviveTheServersDeath) {
  Bytes first = MakeBase();
  Bytes second = first;
  auto mount = MountBase();
  Touch(*mount / "dom1");
  Touch(*mount / "dom2");
  {
    const File one(*mount / "dom1");
    const File two(*mount / "dom2");
    for (uint32_t i = 0; i < 10; ++i) {
      const Bytes bytes = RandomBytes(5000 + i, i);
      one.Write(uint64_t{i} * 100'000, bytes);
      first.replace(uint64_t{i} * 100'000, bytes.size(), bytes);
      two.Write(uint64_t{i} * 200'000, bytes);
      second.replace(uint64_t{i} * 200'000, bytes.size(), bytes);
    }
    ASSERT_EQ(fsync(one.fd()), 0);
    ASSERT_EQ(fdatasync(two.fd()), 0);
    mount->Kill();
  }
  Must(Cowfs({"umount", MountPoint()}));
  mount->MountAgain();
  EXPECT_TRUE(Holds(*mount / "dom1", first));
  EXPECT_TRUE(Holds(*mount / "dom2", second));
}

TEST_F(Durability, SyncFlushesEveryImage) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  {
    std::vector<File> images;
    for (uint32_t i = 0; i < 5; ++i) {
      images.emplace_back(*mount / ("dom" + std::to_string(i)), O_RDWR | O_CREAT);
      images.back().Write(uint64_t{i} * 10'000, RandomBytes(20'000, i));
    }
    Must(Cowfs({"sync", MountPoint()}));
    mount->Kill();
  }
  Must(Cowfs({"umount", MountPoint()}));
  mount->MountAgain();
  for (uint32_t i = 0; i < 5; ++i) {
    Bytes expected = base;
    expected.replace(uint64_t{i} * 10'000, 20'000, RandomBytes(20'000, i));
    EXPECT_TRUE(Holds(*mount / ("dom" + std::to_string(i)), expected));
  }
}

TEST_F(Durability, SyncfsBringsDataToTheServerWhichCommitsWithinSeconds) {
  Bytes expected = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    image.Write(10'000, RandomBytes(50'000, 1));
    expected.replace(10'000, 50'000, RandomBytes(50'000, 1));
    ASSERT_EQ(syncfs(image.fd()), 0);
    // I11: at most 5 s; some room for a slow machine. Writing once more must not put it off.
    for (int i = 0; i < 8; ++i) {
      SleepMilliseconds(1000);
    }
    mount->Kill();
  }
  Must(Cowfs({"umount", MountPoint()}));
  mount->MountAgain();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

TEST_F(Durability, EveryWayToUnmountKeepsWhatWasWritten) {
  Bytes expected = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  for (uint32_t round = 0; round < 3; ++round) {
    {
      const File image(*mount / "dom1");
      const Bytes bytes = RandomBytes(700'000, round);
      image.Write(round * kMiB + 5, bytes);
      expected.replace(round * kMiB + 5, bytes.size(), bytes);
    }
    if (round == 0) {
      mount->Unmount();
    } else if (round == 1) {
      Must(Execute({"umount", MountPoint().string()}));
    } else {
      kill(mount->server(), SIGTERM);
      ASSERT_TRUE(Eventually([&] { return !IsMountPoint(MountPoint()); }));
    }
    mount->MountAgain();  // waits for a holder that is ending
    EXPECT_TRUE(Holds(*mount / "dom1", expected)) << "round " << round;
  }
}

TEST_F(Durability, CloseReportsThatThereWasNoSpace) {
  MakeBase();
  const HostFileSystem small(Scratch(), "tmpfs", 12 * kMiB);
  auto mount = MountBase({"--store", small.path() / "store", "-o", "full=error"});
  Must(Execute({"truncate", "-s", "64M", (*mount / "dom1").string()}));
  Touch(*mount / "dom2");
  File image(*mount / "dom1");
  const Bytes bytes = RandomBytes(kMiB, 1);
  bool failed = false;
  for (uint64_t at = 0; at < 32 && !failed; ++at) {
    failed = pwrite(image.fd(), bytes.data(), bytes.size(), static_cast<off_t>(at * kMiB)) !=
             static_cast<ssize_t>(bytes.size());
  }
  try {
    image.Close();
  } catch (const std::system_error&) {
    failed = true;
  }
  EXPECT_TRUE(failed) << "32 MiB into 12 MiB, and no error";
  EXPECT_TRUE(Holds(*mount / "dom2", ReadFile(Base())));  // the others live on
  // What cannot be made durable holds up the end of a mount, unless it is given up.
  const Result umount = Cowfs({"umount", MountPoint()});
  EXPECT_EQ(umount.status, 1);
  EXPECT_TRUE(Mentions(umount.err, "dom1"));
  Cowfs({"umount", "--force", MountPoint()});
  EXPECT_FALSE(IsMountPoint(MountPoint()));
  mount->MountAgain();
  EXPECT_TRUE(Holds(*mount / "dom2", ReadFile(Base())));
}

TEST_F(Durability, RepeatedErrorsAreLoggedAtALimitedRate) {
  MakeBase();
  const HostFileSystem small(Scratch(), "tmpfs", 12 * kMiB);
  const Path log = Scratch() / "log";
  auto mount =
      MountBase({"--store", small.path() / "store", "-o", "cache=none", "--log-file", log});
  Must(Execute({"truncate", "-s", "64M", (*mount / "dom1").string()}));
  File image(*mount / "dom1");
  const Bytes bytes = RandomBytes(64 * kKiB, 1);
  int failures = 0;
  for (uint64_t at = 0; at < 1000 && failures < 300; ++at) {
    failures +=
        pwrite(image.fd(), bytes.data(), bytes.size(), static_cast<off_t>(at * bytes.size())) < 0
            ? 1
            : 0;
  }
  EXPECT_EQ(failures, 300);
  const Bytes text = ReadFile(log);
  const auto lines = std::count(text.begin(), text.end(), '\n');
  EXPECT_GE(lines, 1) << "nothing was logged";
  EXPECT_LT(lines, 100) << text.substr(0, 2000);
  image.Close();
  Cowfs({"umount", "--force", MountPoint()});
  EXPECT_FALSE(IsMountPoint(MountPoint()));
}

}  // namespace
}  // namespace cowfs::e2e
