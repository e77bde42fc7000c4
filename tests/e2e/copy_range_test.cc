// copy_file_range(2) between images: what the source shares with the base, the target shares too.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <tuple>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

// Copies all of the range; throws when a call fails or copies nothing.
void CopyRange(const File& from, uint64_t from_offset, const File& to, uint64_t to_offset,
               uint64_t length) {
  auto in = static_cast<off64_t>(from_offset);
  auto out = static_cast<off64_t>(to_offset);
  while (length > 0) {
    const ssize_t count = copy_file_range(from.fd(), &in, to.fd(), &out, length, 0);
    if (count <= 0) {
      throw std::system_error(errno, std::generic_category(), "copy_file_range");
    }
    length -= static_cast<uint64_t>(count);
  }
}

class CopyRangeTest : public MountTest, public testing::WithParamInterface<std::string> {
 protected:
  std::unique_ptr<Mount> MountWithChunks() const { return MountBase({"--chunk-size", GetParam()}); }
};

TEST_P(CopyRangeTest, AnyOffsetAndLengthCopiesByteForByte) {
  const Bytes base = MakeBase(8 * kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "from");
  Touch(*mount / "to");
  const File from(*mount / "from");
  const File to(*mount / "to");
  Bytes source = base;
  Bytes target = base;
  from.Write(kMiB + 100, RandomBytes(2 * kMiB, 5));
  source.replace(kMiB + 100, 2 * kMiB, RandomBytes(2 * kMiB, 5));
  to.Write(2 * kMiB, RandomBytes(3 * kMiB, 6));  // dirty, and in the way
  target.replace(2 * kMiB, 3 * kMiB, RandomBytes(3 * kMiB, 6));
  for (const auto& [in, out, length] : std::vector<std::tuple<uint64_t, uint64_t, uint64_t>>{
           {0, 0, 100},
           {0, 4096, 4096},
           {4096, 4096, 65'536},
           {kMiB, 2 * kMiB, 2 * kMiB},
           {kMiB + 1, 3 * kMiB + 2, 500'003},
           {6 * kMiB, 6 * kMiB, 2 * kMiB},
           {100, 7 * kMiB + 4000, kMiB},  // beyond the target's end
           {2 * kMiB, 2 * kMiB, 100'000}}) {
    SCOPED_TRACE(testing::Message() << in << " to " << out << ", " << length);
    CopyRange(from, in, to, out, length);
    target.resize(std::max<uint64_t>(target.size(), out + length));
    target.replace(out, length, source, in, length);
    EXPECT_TRUE(Same(target, to.ReadAll()));
  }
  EXPECT_TRUE(Same(source, from.ReadAll()));
  to.DropPages();
  EXPECT_TRUE(Same(target, to.ReadAll()));
}

TEST_P(CopyRangeTest, WithinOneImageCopiesByteForByte) {
  Bytes expected = MakeBase(8 * kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  image.Write(500, RandomBytes(300'000, 1));
  expected.replace(500, 300'000, RandomBytes(300'000, 1));
  CopyRange(image, 0, image, 4 * kMiB + 3, kMiB);
  expected.replace(4 * kMiB + 3, kMiB, Bytes(expected, 0, kMiB));
  EXPECT_TRUE(Same(expected, image.ReadAll()));
}

TEST_P(CopyRangeTest, UnchangedChunksAtTheSameOffsetAreSharedAgain) {
  const Bytes base = MakeBase(8 * kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "clean");
  Touch(*mount / "dom1");
  const File clean(*mount / "clean");
  const File image(*mount / "dom1");
  image.Write(0, RandomBytes(8 * kMiB, 3));
  image.Sync();
  CopyRange(clean, 2 * kMiB, image, 2 * kMiB, 4 * kMiB);
  image.Sync();
  EXPECT_TRUE(Same(RandomBytes(8 * kMiB, 3).substr(0, 2 * kMiB) + base.substr(2 * kMiB, 4 * kMiB) +
                       RandomBytes(8 * kMiB, 3).substr(6 * kMiB),
                   image.ReadAll()));
  EXPECT_TRUE(Takes(4 * kMiB, CowfsJson({"info", *mount / "dom1"})["own_bytes"]));
  EXPECT_TRUE(Eventually([&] { return Takes(4 * kMiB, AllocatedBytes(*mount / "dom1")); }));
}

TEST_P(CopyRangeTest, AWholeCopyWithHolesCostsThePrivatePartOnly) {
  Bytes expected = MakeBase(16 * kMiB + 123);
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  {
    const File from(*mount / "dom1");
    from.Write(5 * kMiB, RandomBytes(kMiB, 2));
    expected.replace(5 * kMiB, kMiB, RandomBytes(kMiB, 2));
    from.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8 * kMiB, 2 * kMiB);
    expected.replace(8 * kMiB, 2 * kMiB, Zeros(2 * kMiB));
    const File to(*mount / "dom2", O_RDWR | O_CREAT | O_EXCL);
    CopyRange(from, 0, to, 0, expected.size());
    EXPECT_TRUE(Same(expected, to.ReadAll()));
    // Grown later, it shows nothing of the base.
    to.Truncate(20 * kMiB);
  }
  Must(Cowfs({"sync", MountPoint()}));
  expected.resize(20 * kMiB);
  const uint64_t chunk = CowfsJson({"info", MountPoint()})["chunk_size"];
  EXPECT_LE(CowfsJson({"info", *mount / "dom2"})["own_bytes"].get<uint64_t>(),
            CowfsJson({"info", *mount / "dom1"})["own_bytes"].get<uint64_t>() + chunk + 64 * kKiB);
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom2", expected));
}

TEST_P(CopyRangeTest, ACopyDoesNotBringBackWhatTheTargetCutOff) {
  const Bytes base = MakeBase(8 * kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "from");
  Touch(*mount / "to");
  const File from(*mount / "from");
  const File to(*mount / "to");
  to.Truncate(kMiB);
  CopyRange(from, 4 * kMiB, to, 4 * kMiB, 4 * kMiB);
  EXPECT_TRUE(Same(base.substr(0, kMiB) + Zeros(3 * kMiB) + base.substr(4 * kMiB), to.ReadAll()));
  to.DropPages();
  EXPECT_TRUE(Same(base.substr(0, kMiB) + Zeros(3 * kMiB) + base.substr(4 * kMiB), to.ReadAll()));
}

INSTANTIATE_TEST_SUITE_P(Chunks, CopyRangeTest, testing::Values("4K", "64K", "2M"),
                         [](const testing::TestParamInfo<std::string>& way) { return way.param; });

// What cp(1) makes of an image costs what the image has private, the rest is the base's. Some
// versions of cp(1) read and write a file that takes less space than its size, unless told not to
// look for zeros: how it is to be called is the parameter.
class Cp : public MountTest,
           public testing::WithParamInterface<std::tuple<std::string, std::string>> {
 protected:
  std::unique_ptr<Mount> MountWithChunks() const {
    return MountBase({"--chunk-size", std::get<0>(GetParam())});
  }
  static void Copy(const Path& from, const Path& to) {
    Must(Execute({"cp", std::get<1>(GetParam()), from.string(), to.string()}));
  }
};

TEST_P(Cp, OfAnImageCostsWhatItHasPrivateAndNoMore) {
  Bytes expected = MakeBase(16 * kMiB);
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    image.Write(5 * kMiB, RandomBytes(kMiB, 2));
    expected.replace(5 * kMiB, kMiB, RandomBytes(kMiB, 2));
    image.Sync();
  }
  // The 1 MiB that was written, in whole chunks.
  const uint64_t chunk = CowfsJson({"info", MountPoint()})["chunk_size"];
  const uint64_t own = std::max(kMiB, chunk);
  Copy(*mount / "dom1", *mount / "dom2");
  Must(Cowfs({"sync", MountPoint()}));
  EXPECT_TRUE(Holds(*mount / "dom2", expected));
  EXPECT_TRUE(Takes(own, CowfsJson({"info", *mount / "dom2"})["own_bytes"]));
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom2", expected));
  EXPECT_TRUE(Holds(*mount / "dom1", expected));

  // They are apart: neither sees what is now written to the other.
  File(*mount / "dom1").Write(5 * kMiB + 7, "one");
  File(*mount / "dom2").Write(7, "two");
  Bytes first = expected;
  Bytes second = expected;
  first.replace(5 * kMiB + 7, 3, "one");
  second.replace(7, 3, "two");
  EXPECT_TRUE(Holds(*mount / "dom1", first));
  EXPECT_TRUE(Holds(*mount / "dom2", second));
}

TEST_P(Cp, OfAFreshImageCostsNothing) {
  const Bytes base = MakeBase(16 * kMiB + 123);
  auto mount = MountWithChunks();
  Touch(*mount / "dom1");
  Copy(*mount / "dom1", *mount / "dom2");
  EXPECT_TRUE(Holds(*mount / "dom2", base));
  // At most the chunk that holds the odd end.
  EXPECT_LE(CowfsJson({"info", *mount / "dom2"})["own_bytes"],
            CowfsJson({"info", MountPoint()})["chunk_size"].get<uint64_t>() + 64 * kKiB);
}

// Who reads and writes hands the kernel pages, which come to the server in requests of at most
// 1 MiB that need not end where larger chunks do: only with chunks of a page is each chunk whole.
INSTANTIATE_TEST_SUITE_P(
    Chunks, Cp,
    testing::Values(std::tuple("4K", "--sparse=auto"), std::tuple("4K", "--sparse=never"),
                    std::tuple("64K", "--sparse=never"), std::tuple("2M", "--sparse=never")),
    [](const testing::TestParamInfo<std::tuple<std::string, std::string>>& way) {
      return std::get<0>(way.param) +
             (std::get<1>(way.param) == "--sparse=never" ? "_kernel" : "_plain");
    });

class CopyLimits : public MountTest {};

TEST_F(CopyLimits, OneCallCopiesAtMostAGibibyteAndEndsOnAChunk) {
  MakeBase();
  auto mount = MountBase({"--chunk-size", "64K"});
  Must(Execute({"truncate", "-s", "5G", (*mount / "from").string()}));
  const File from(*mount / "from");
  const File to(*mount / "to", O_RDWR | O_CREAT | O_EXCL);
  off64_t in = 1000;
  off64_t out = 1000;
  const ssize_t count =
      copy_file_range(from.fd(), &in, to.fd(), &out, static_cast<size_t>(4 * kGiB), 0);
  ASSERT_GT(count, 0);
  EXPECT_LE(static_cast<uint64_t>(count), kGiB);
  EXPECT_EQ((1000 + count) % static_cast<ssize_t>(64 * kKiB), 0);
}

// Host file systems that share extents: the private part of a copy is shared as well.
class Reflink : public MountTest, public testing::WithParamInterface<std::string> {};

TEST_P(Reflink, ThePrivatePartOfACopyIsSharedOnTheHost) {
  const HostFileSystem host(Scratch(), GetParam(), 500 * kMiB);
  const Bytes base = RandomBytes(kMiB, 1);
  WriteFile(host.path() / "base.img", base);
  const auto used = [&] {
    Must(Execute({"sync", "-f", host.path().string()}));
    return std::stoull(Must(Shell("df -B1 --output=used " + Quoted(host.path()) + " | tail -n1")));
  };
  Mount mount(host.path() / "base.img", MountPoint());
  const Bytes own = RandomBytes(64 * kMiB, 2);
  WriteFile(mount / "dom1", own);
  Must(Cowfs({"sync", MountPoint()}));
  const uint64_t before = used();
  Must(Execute({"cp", (mount / "dom1").string(), (mount / "dom2").string()}));
  Must(Cowfs({"sync", MountPoint()}));
  EXPECT_LT(used(), before + 16 * kMiB) << "a copy of 64 MiB was not shared";
  EXPECT_TRUE(Holds(mount / "dom2", own));
  // Shared or not, a write goes to one of them only.
  File(mount / "dom2").Write(kMiB, "two");
  EXPECT_TRUE(Holds(mount / "dom1", own));
  mount.Remount();
  Bytes changed = own;
  changed.replace(kMiB, 3, "two");
  EXPECT_TRUE(Holds(mount / "dom2", changed));
  EXPECT_TRUE(Holds(mount / "dom1", own));
}

INSTANTIATE_TEST_SUITE_P(Hosts, Reflink, testing::Values("xfs", "btrfs"),
                         [](const testing::TestParamInfo<std::string>& way) { return way.param; });

}  // namespace
}  // namespace cowfs::e2e
