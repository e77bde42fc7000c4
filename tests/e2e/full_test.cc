// A full disk under the store (I7): what waits, what fails, what goes on.

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

TEST_P(Full, WritesThatNeedSpaceWaitAndEverythingElseGoesOn) {
  auto mount = MountOnHost("full=wait");
  Touch(*mount / "dom1");
  Touch(*mount / "dom2");
  Touch(*mount / "old");
  const Bytes own = RandomBytes(kMiB, 1);
  File(*mount / "dom1").Write(0, own);
  Must(Cowfs({"sync", MountPoint()}));
  Fill();

  const Bytes more = RandomBytes(kMiB, 2);
  Writer writer(*mount / "dom2", 8 * kMiB, more);
  ASSERT_TRUE(Waits(*mount / "dom2"));
  EXPECT_EQ(Parked(MountPoint()), 1U);
  EXPECT_EQ(Parked(*mount / "dom1"), 0U);
  EXPECT_TRUE(Mentions(ReadFile(Log()), "its writes wait for space"));

  // Reads, overwrites in place, flushes, changes of names.
  const Bytes newer = RandomBytes(kMiB, 3);
  {
    const File image(*mount / "dom1");
    image.Write(0, newer);
    image.Sync();
    image.DropPages();
    EXPECT_TRUE(Same(newer, image.Read(0, kMiB)));
    EXPECT_TRUE(Same(base_.substr(kMiB, kMiB), image.Read(kMiB, kMiB)));
  }
  Must(Cowfs({"create", *mount / "new"}));
  Must(Cowfs({"mv", *mount / "new", *mount / "newer"}));
  Must(Cowfs({"rm", *mount / "newer"}));

  // Nobody hangs who is told in time.
  for (const char* command : {"sync", "umount"}) {
    const Result refused = Cowfs({command, MountPoint()});
    EXPECT_EQ(refused.status, 1);
    EXPECT_TRUE(Mentions(refused.err, "wait"));
  }

  MakeRoom();
  EXPECT_EQ(writer.Join(), 0);
  EXPECT_TRUE(WaitsNoMore(MountPoint()));
  Bytes expected = base_;
  expected.replace(8 * kMiB, kMiB, more);
  EXPECT_TRUE(Holds(*mount / "dom2", expected));
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom2", expected));
  expected = base_;
  expected.replace(0, kMiB, newer);
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

TEST_P(Full, AMachinesWritesStandStillAndGoOn) {
  const Path tree = Scratch() / "tree";
  MakeTree(tree);
  MakeExt4Image(Base(), 64 * kMiB, tree);
  auto mount = MountOnHost("full=wait");
  Touch(*mount / "dom1");
  const LoopDevice loop(*mount / "dom1");
  OtherMount guest(loop.device(), Scratch() / "guest");
  // Room for some of what the machine writes.
  Fill();
  ASSERT_EQ(::truncate(Filler().c_str(), static_cast<off_t>(StatOf(Filler()).st_size - 8 * kMiB)),
            0);
  const Bytes content = RandomBytes(24 * kMiB, 5);
  WriteFile(Scratch() / "content", content);
  Background writer({"dd", "if=" + (Scratch() / "content").string(),
                     "of=" + (guest / "file").string(), "bs=1M", "conv=fsync"},
                    Scratch() / "out", Scratch() / "err");
  ASSERT_TRUE(Waits(*mount / "dom1"));
  MakeRoom();
  EXPECT_EQ(writer.Wait(std::chrono::seconds(120)), 0);
  EXPECT_TRUE(WaitsNoMore(MountPoint()));
  EXPECT_TRUE(Holds(guest / "file", content));
  guest.Unmount();
  Must(Execute({"e2fsck", "-fn", loop.device()}));
}

TEST_P(Full, WithErrorsAMachineLearnsItAtItsNextFlush) {
  auto mount = MountOnHost("full=error");
  Touch(*mount / "dom1");
  const Bytes own = RandomBytes(kMiB, 1);
  File(*mount / "dom1").Write(0, own);
  Must(Cowfs({"sync", MountPoint()}));
  Fill();
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 8 * kMiB, RandomBytes(4 * kMiB, 2)), ENOSPC);
  {
    const File image(*mount / "dom1");
    image.Write(16 * kMiB, RandomBytes(kMiB, 2));
    EXPECT_NE(::fsync(image.fd()), 0);
    EXPECT_EQ(errno, ENOSPC);
  }
  EXPECT_EQ(Parked(MountPoint()), 0U);
  // The same mount goes on once there is space.
  MakeRoom();
  const Bytes more = RandomBytes(kMiB, 3);
  {
    const File image(*mount / "dom1");
    image.Write(16 * kMiB, more);
    image.Sync();
  }
  Bytes expected = base_;
  expected.replace(0, kMiB, own);
  expected.replace(16 * kMiB, kMiB, more);
  mount->Remount();
  EXPECT_TRUE(Same(expected.substr(0, 8 * kMiB), File(*mount / "dom1").Read(0, 8 * kMiB)));
  EXPECT_TRUE(Same(expected.substr(12 * kMiB), File(*mount / "dom1").Read(12 * kMiB, 52 * kMiB)));
}

TEST_P(Full, HundredsOfWaitingWritesHoldNoThreadAndStopNoOtherImage) {
  constexpr size_t kWrites = 300;
  auto mount = MountOnHost("full=wait");
  Touch(*mount / "other");
  File(*mount / "other").Write(0, RandomBytes(kMiB, 1));
  const auto image = [&](size_t i) { return *mount / ("dom" + std::to_string(i)); };
  for (size_t i = 0; i < kWrites; ++i) Touch(image(i));
  Must(Cowfs({"sync", MountPoint()}));
  Fill();
  const Bytes content = RandomBytes(64 * kKiB, 7);
  // The kernel lets one direct write at a time into an image.
  std::vector<std::unique_ptr<Writer>> writers;
  for (size_t i = 0; i < kWrites; ++i) {
    writers.push_back(std::make_unique<Writer>(image(i), 0, content));
  }
  // A few may find a last block.
  EXPECT_TRUE(
      Eventually([&] { return Parked(MountPoint()) > kWrites - 50; }, std::chrono::seconds(60)));
  const auto threads = std::distance(
      std::filesystem::directory_iterator("/proc/" + std::to_string(mount->server()) + "/task"),
      std::filesystem::directory_iterator());
  EXPECT_LT(threads, 110);
  const Bytes other = RandomBytes(kMiB, 2);
  EXPECT_EQ(WriteDirectly(*mount / "other", 0, other), 0);
  {
    const File file(*mount / "other");
    file.Sync();
    EXPECT_TRUE(Same(other, file.Read(0, kMiB)));
  }
  EXPECT_GT(Parked(MountPoint()), kWrites - 50);
  MakeRoom();
  for (const auto& writer : writers) EXPECT_EQ(writer->Join(), 0);
  for (size_t i = 0; i < kWrites; ++i) {
    ASSERT_TRUE(Same(content, File(image(i)).Read(0, content.size()))) << i;
  }
}

TEST_P(Full, ForceEndsWhatWaits) {
  auto mount = MountOnHost("full=wait");
  Touch(*mount / "dom1");
  Must(Cowfs({"sync", MountPoint()}));
  Fill();
  Writer writer(*mount / "dom1", 0, RandomBytes(kMiB, 2));
  ASSERT_TRUE(Waits(*mount / "dom1"));
  // The writer has the image open until it hears of its end.
  EXPECT_TRUE(Eventually([&] { return Cowfs({"umount", "--force", MountPoint()}).status == 0; }));
  EXPECT_EQ(writer.Join(), ENOSPC);
  EXPECT_FALSE(IsMountPoint(MountPoint()));
  // On the full disk it can be mounted again all the same.
  mount->MountAgain();
  EXPECT_TRUE(Same(base_.substr(0, 4 * kMiB), File(*mount / "dom1").Read(0, 4 * kMiB)));
}

TEST_P(Full, ForceOnAMountThatStaysSaysWhatHasEnded) {
  auto mount = MountOnHost("full=wait");
  Touch(*mount / "dom1");
  Must(Cowfs({"sync", MountPoint()}));
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["full"], "wait");
  std::optional<File> other(*mount / "dom1");
  Fill();
  Writer writer(*mount / "dom1", 0, RandomBytes(kMiB, 2));
  ASSERT_TRUE(Waits(*mount / "dom1"));
  const Result refused = Cowfs({"umount", "--force", MountPoint()});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, "is in use by"));
  EXPECT_TRUE(Mentions(refused.err, "have ended with an error"));
  EXPECT_EQ(writer.Join(), ENOSPC);
  EXPECT_TRUE(Mentions(ReadFile(Log()), "writes without space do not wait any more"));
  EXPECT_TRUE(Mentions(ReadFile(Log()), "error: image dom1: its writes wait for space"));
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["full"], "error");
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 0, RandomBytes(kMiB, 2)), ENOSPC);
  MakeRoom();  // for the commit of times
  other.reset();
  mount->Unmount();
  EXPECT_TRUE(Mentions(ReadFile(Log()), "failed, see above; everything else is durable"));
  EXPECT_EQ(ReadFile(Log()).find(": everything is durable"), Bytes::npos);
  mount->MountAgain();
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["full"], "wait");
}

TEST_P(Full, AServerThatWasKilledOnAFullDiskComesBack) {
  auto mount = MountOnHost("full=wait");
  Touch(*mount / "dom1");
  const Bytes own = RandomBytes(kMiB, 1);
  // At the server, and not committed yet; the commit then finds the disk full.
  ASSERT_EQ(WriteDirectly(*mount / "dom1", 0, own), 0);
  Fill();
  File(*mount / "dom1").Sync();
  mount->Kill();
  Must(Cowfs({"umount", MountPoint()}));
  mount->MountAgain();
  EXPECT_TRUE(Same(own, File(*mount / "dom1").Read(0, kMiB)));
}

// SQLite makes files when it opens the catalog: the reserve is given up for them.
TEST_P(Full, AStoreAtRestOnAFullDiskIsMounted) {
  auto mount = MountOnHost("full=wait");
  const Bytes own = RandomBytes(kMiB, 1);
  WriteFile(*mount / "dom1", own);
  Touch(*mount / "dom2");
  mount->Unmount();
  Fill();
  Must(Cowfs({"rm", "--store", host_->path() / "store", "dom2"}));
  mount->MountAgain();
  EXPECT_TRUE(Holds(*mount / "dom1", own));
  Must(Cowfs({"rm", *mount / "dom1"}));
}

TEST_P(Full, RepairFindsRoomForTheCopyOfTheCatalog) {
  auto mount = MountOnHost("full=wait");
  const Bytes own = RandomBytes(kMiB, 1);
  WriteFile(*mount / "dom1", own);
  mount->Unmount();
  const Path store = host_->path() / "store";
  const auto orphan_map = [&](int layer) {
    Must(Execute({"python3", "-c",
                  "import sqlite3, sys\n"
                  "catalog = sqlite3.connect(sys.argv[1])\n"
                  "catalog.execute('INSERT INTO map_page VALUES (?, 0, zeroblob(512))',\n"
                  "                (int(sys.argv[2]),))\n"
                  "catalog.commit()",
                  (store / "catalog.db").string(), std::to_string(layer)}));
  };
  orphan_map(77);
  Fill();
  Must(Cowfs({"check", "--repair", store}));

  // Without the reserve other leaks are given back, and make the room.
  std::filesystem::remove(Filler());
  orphan_map(78);
  File(store / "layers" / "1.cow").Write(100 * kMiB, RandomBytes(8 * kMiB, 2));
  std::filesystem::remove(store / "reserve");
  std::filesystem::remove(store / "catalog.db.before-repair");
  Fill();
  const Result first = Cowfs({"check", "--repair", store});
  EXPECT_EQ(first.status, 3) << first.out << first.err;
  EXPECT_TRUE(Mentions(first.out, "repair again"));
  EXPECT_FALSE(std::filesystem::exists(store / "catalog.db.before-repair"));
  Must(Cowfs({"check", "--repair", store}));
  mount->MountAgain();
  EXPECT_TRUE(Holds(*mount / "dom1", own));
}

INSTANTIATE_TEST_SUITE_P(Types, Full, testing::Values("ext4", "xfs"),
                         [](const testing::TestParamInfo<std::string>& type) {
                           return type.param;
                         });

// What I7 excepts: a place that the image has already, and that its host cannot write over without
// space.
struct NotInPlace {
  std::string name;
  std::string host;
  // Makes an image with its own chunks under the mount and returns what it then holds at 0.
  Bytes (*prepare)(const Path& image);
};

void PrintTo(const NotInPlace& kind, std::ostream* out) { *out << kind.name; }

Bytes Own(const Path& image) {
  Bytes own = RandomBytes(kMiB, 1);
  const File file(image, O_RDWR | O_CREAT);
  file.Write(0, own);
  file.Sync();
  return own;
}

Bytes Shared(const Path& image) {
  const Path origin = image.parent_path() / "origin";
  Bytes own = Own(origin);
  const File from(origin);
  const File to(image, O_RDWR | O_CREAT);
  EXPECT_EQ(::copy_file_range(from.fd(), nullptr, to.fd(), nullptr, kMiB, 0), ssize_t{kMiB});
  to.Sync();
  return own;
}

Bytes Trimmed(const Path& image) {
  Own(image);
  const File file(image);
  file.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kMiB);
  file.Sync();
  return Zeros(kMiB);
}

class FullNotInPlace : public FullDisk, public testing::WithParamInterface<NotInPlace> {
 protected:
  void SetUp() override { SetUpHost(GetParam().host); }
};

TEST_P(FullNotInPlace, AnOverwriteWaitsAndGoesOn) {
  auto mount = MountOnHost("full=wait");
  const Bytes old = GetParam().prepare(*mount / "dom1");
  Touch(*mount / "dom2");
  Must(Cowfs({"sync", MountPoint()}));
  // btrfs may find space again at any moment, by a commit of its own: if nothing has waited by
  // then, the disk is filled anew.
  Bytes newer;
  std::optional<Writer> writer;
  bool waited = false;
  for (uint32_t round = 0; round < 10 && !waited; ++round) {
    Fill();
    newer = RandomBytes(kMiB, 3 + round);
    writer.emplace(*mount / "dom1", 0, newer);
    ASSERT_TRUE(Eventually([&] {
      waited = Parked(*mount / "dom1") > 0;
      return waited || writer->Done();
    }));
  }
  ASSERT_TRUE(waited);
  EXPECT_TRUE(Same(base_, File(*mount / "dom2").ReadAll()));
  File(*mount / "dom2").Sync();

  MakeRoom();
  EXPECT_EQ(writer->Join(), 0);
  EXPECT_TRUE(WaitsNoMore(MountPoint()));
  Bytes expected = base_;
  expected.replace(0, kMiB, newer);
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

TEST_P(FullNotInPlace, AnOverwriteFailsAndTheOldStays) {
  auto mount = MountOnHost("full=error");
  Bytes expected = base_;
  expected.replace(0, kMiB, GetParam().prepare(*mount / "dom1"));
  Must(Cowfs({"sync", MountPoint()}));
  Fill();
  // A write may be torn between chunks, and a chunk is never mixed: one chunk each.
  const Bytes newer = RandomBytes(kMiB, 3);
  size_t failed = 0;
  for (uint64_t at = 0; at < kMiB; at += 4 * kKiB) {
    const int code = WriteDirectly(*mount / "dom1", at, newer.substr(at, 4 * kKiB));
    if (code == 0) {
      expected.replace(at, 4 * kKiB, newer, at, 4 * kKiB);
    } else {
      ASSERT_EQ(code, ENOSPC);
      ++failed;
    }
  }
  EXPECT_GT(failed, 0U);
  File(*mount / "dom1").Sync();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
  MakeRoom();
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 0, newer), 0);
  expected.replace(0, kMiB, newer);
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

INSTANTIATE_TEST_SUITE_P(Kinds, FullNotInPlace,
                         testing::Values(NotInPlace{"WhereTheHostNeverDoes", "btrfs", Own},
                                         NotInPlace{"SharedByReflink", "xfs", Shared},
                                         NotInPlace{"TrimmedOnExt4", "ext4", Trimmed},
                                         NotInPlace{"TrimmedOnXfs", "xfs", Trimmed}),
                         [](const testing::TestParamInfo<NotInPlace>& kind) {
                           return kind.param.name;
                         });

// Where a change of any page takes space, also one that is mapped into memory.
class FullCopyOnWrite : public FullDisk {
 protected:
  void SetUp() override { SetUpHost("btrfs"); }
};

TEST_F(FullCopyOnWrite, TheServerLivesOnAndOpensImages) {
  constexpr int kImages = 24;
  auto mount = MountOnHost("full=wait");
  const auto image = [&](int i) { return *mount / ("dom" + std::to_string(i)); };
  const auto own = [](int i) { return RandomBytes(64 * kKiB, static_cast<uint32_t>(i)); };
  for (int i = 0; i < kImages; ++i) WriteFile(image(i), own(i));
  mount->Remount();
  const File root(host_->path(), O_RDONLY | O_DIRECTORY);
  for (int i = 0; i < kImages; ++i) {
    // A commit each time, as long as there is room for one.
    std::error_code full;
    std::filesystem::permissions(image(i), std::filesystem::perms::owner_all, full);
    ASSERT_NO_FATAL_FAILURE(Fill());
    ::syncfs(root.fd());
    ASSERT_TRUE(Holds(image(i), own(i)));
    const Result made = Cowfs({"create", *mount / ("new" + std::to_string(i))});
    EXPECT_TRUE(made.status == 0 || Mentions(made.err, "No space left")) << made.err;
    ASSERT_TRUE(ProcessExists(mount->server()));
  }
  MakeRoom();
}

TEST_F(FullCopyOnWrite, AMountedStoreIsSpokenForByItsServer) {
  auto mount = MountOnHost("full=wait");
  Touch(*mount / "dom1");
  const Path store = host_->path() / "store";
  EXPECT_EQ(Cowfs({"check", MountPoint()}).out, "clean; 1 image\n");
  for (const Arguments& line : {Arguments{"ls", "--store", store}, Arguments{"info", store}}) {
    const Result result = Cowfs(line);
    EXPECT_EQ(result.status, 1) << result.out;
    EXPECT_TRUE(Mentions(result.err, "is mounted on " + MountPoint().string()));
  }
  std::filesystem::create_directory(Scratch() / "second");
  const Result second = Cowfs({"mount", Base(), Scratch() / "second", "--store", store});
  EXPECT_EQ(second.status, 1);
  EXPECT_TRUE(Mentions(second.err, "in use by process"));
  mount->Unmount();
  EXPECT_EQ(Cowfs({"check", store}).out, "clean; 1 image\n");
  EXPECT_EQ(CowfsJson({"info", store})["images"], 1);
}

}  // namespace
}  // namespace cowfs::e2e
