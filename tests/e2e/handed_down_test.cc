// What a server knows beyond the catalog, and the one after it must know too, however it ended.

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <future>
#include <memory>
#include <string>
#include <tuple>

#include "tests/e2e/full_disk.h"

namespace cowfs::e2e {
namespace {

// With both ways in which requests come again, and with both ways to another server.
class HandedDown : public FullDisk,
                   public testing::WithParamInterface<std::tuple<const char*, const char*>> {
 protected:
  static std::string Resend() { return std::string("resend=") + std::get<0>(GetParam()); }
  Json Info() const { return CowfsJson({"info", MountPoint()}); }
  // Returns when another server serves.
  void ChangeServers() const {
    const auto old = Info()["server_pid"].get<pid_t>();
    if (std::string(std::get<1>(GetParam())) == "killed") {
      kill(old, SIGKILL);
    } else {
      Must(Cowfs({"restart", MountPoint()}));
    }
    ASSERT_TRUE(Eventually([&] { return Info()["server_pid"] != old; }));
  }
  // With the kernel's cache in between nobody would be told of interruptions.
  std::unique_ptr<Mount> MountForInterruptions() const {
    return MountOnHost(Resend() + ",cache=none,full=wait");
  }
  // A process whose write waits for space, of which it leaves none.
  pid_t StartToWait(const Path& image) const {
    Touch(image);
    Fill();
    const pid_t writer = fork();
    if (writer == 0) _exit(WriteDirectly(image, 0, RandomBytes(64 * kKiB, 5)));
    EXPECT_TRUE(Waits(image));
    return writer;
  }
};

TEST_P(HandedDown, WritesThatWaitForSpace) {
  SetUpHost("ext4");
  if (IsSkipped()) return;
  auto mount = MountOnHost(Resend());
  // One of each image: the kernel lets them in one by one.
  constexpr int kImages = 20;
  const auto image = [&](int i) { return *mount / ("dom" + std::to_string(i)); };
  const auto bytes = [](int i) { return RandomBytes(64 * kKiB, static_cast<uint32_t>(i)); };
  for (int i = 0; i < kImages; ++i) Touch(image(i));
  Fill();
  std::vector<std::future<int>> writes;
  for (int i = 0; i < kImages; ++i) {
    writes.push_back(std::async(std::launch::async, WriteDirectly, image(i), kMiB, bytes(i)));
  }
  const auto all_wait = [&] { return Info()["parked"] == kImages; };
  EXPECT_TRUE(Eventually(all_wait));
  for (int i = 0; i < 2; ++i) {
    ChangeServers();
    EXPECT_TRUE(Eventually(all_wait));
  }
  MakeRoom();
  for (auto& write : writes) EXPECT_EQ(write.get(), 0);
  EXPECT_TRUE(Eventually([&] { return Info()["parked"] == 0; }));
  mount->Remount();
  for (int i = 0; i < kImages; ++i) {
    EXPECT_TRUE(Same(bytes(i), File(image(i)).Read(kMiB, 64 * kKiB)));
  }
}

TEST_P(HandedDown, ThatWhoWaitsWasInterrupted) {
  SetUpHost("ext4");
  if (IsSkipped()) return;
  auto mount = MountForInterruptions();
  const pid_t writer = StartToWait(*mount / "dom1");
  // The signal comes while there is no server, to a request that the next one is to be sent.
  kill(mount->keeper(), SIGSTOP);
  kill(mount->server(), SIGKILL);
  kill(writer, SIGKILL);
  kill(mount->keeper(), SIGCONT);
  int status = 0;
  EXPECT_TRUE(Eventually([&] { return waitpid(writer, &status, WNOHANG) == writer; }));
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(Parked(*mount / "dom1"), 0U);
  MakeRoom();
}

TEST_P(HandedDown, ThatAnInterruptionWasReadAndNotDone) {
  SetUpHost("ext4");
  if (IsSkipped()) return;
  auto mount = MountForInterruptions();
  const pid_t writer = StartToWait(*mount / "dom1");
  // Read at once, and looked at when the write is tried again, 200 ms later.
  kill(writer, SIGKILL);
  SleepMilliseconds(20);
  ChangeServers();
  int status = 0;
  EXPECT_TRUE(Eventually([&] { return waitpid(writer, &status, WNOHANG) == writer; }));
  MakeRoom();
}

TEST_P(HandedDown, ThatNothingWaitsForSpaceAnyMore) {
  SetUpHost("ext4");
  if (IsSkipped()) return;
  auto mount = MountOnHost(Resend() + ",full=wait");
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  EXPECT_EQ(Cowfs({"umount", "--force", MountPoint()}).status, 1);  // it is in use
  EXPECT_EQ(Info()["full"], "error");
  ChangeServers();
  EXPECT_EQ(Info()["full"], "error");
  Fill();
  EXPECT_EQ(WriteDirectly(*mount / "dom1", 0, RandomBytes(64 * kKiB, 5)), ENOSPC);
  MakeRoom();
}

TEST_P(HandedDown, ThatWatermarksWereToldOf) {
  SetUpHost("ext4");
  if (IsSkipped()) return;
  const Path told = Scratch() / "told";
  auto mount = MountOnHost(Resend() + ",watermarks=1:99,on_watermark=\"echo $COWFS_WATERMARK >>" +
                           told.string() + "\"");
  EXPECT_TRUE(Eventually([&] { return Info()["watermark"] == 1; }));
  ChangeServers();
  EXPECT_TRUE(Eventually([&] { return Info()["watermark"] == 1; }));
  Fill();
  EXPECT_TRUE(Eventually([&] { return Info()["watermark"] == 99; }));
  ChangeServers();
  EXPECT_TRUE(Eventually([&] { return Info()["watermark"] == 99; }));
  // It comes in order, and what is told of later has been told by then.
  MakeRoom();
  EXPECT_TRUE(Eventually([&] { return Info()["watermark"] == 1; }));
  Fill();
  EXPECT_TRUE(Eventually([&] { return ReadFile(told).find("99\n99\n") != std::string::npos; }));
  EXPECT_EQ(ReadFile(told), "1\n99\n99\n");
  MakeRoom();
}

TEST_P(HandedDown, TimesThatWereSet) {
  MakeBase();
  auto mount = MountBase({"-o", Resend()});
  Touch(*mount / "dom1");
  const timespec times[2] = {{.tv_sec = 1'000'000, .tv_nsec = 1},
                             {.tv_sec = 2'000'000, .tv_nsec = 2}};
  ASSERT_EQ(utimensat(AT_FDCWD, (*mount / "dom1").c_str(), times, 0), 0);
  ASSERT_EQ(chmod((*mount / "dom1").c_str(), 0640), 0);
  ChangeServers();
  SleepMilliseconds(1100);  // for as long the kernel may have kept them
  struct stat status {};
  ASSERT_EQ(stat((*mount / "dom1").c_str(), &status), 0);
  EXPECT_EQ(status.st_atim.tv_sec, 1'000'000);
  EXPECT_EQ(status.st_mtim.tv_sec, 2'000'000);
  EXPECT_EQ(status.st_mtim.tv_nsec, 2);
  EXPECT_EQ(status.st_mode & 07777U, 0640U);
}

TEST_P(HandedDown, TheLockOnTheStore) {
  MakeBase();
  auto mount = MountBase({"-o", Resend()});
  ChangeServers();
  std::filesystem::create_directories(Scratch() / "other");
  const Result result = Cowfs({"mount", Base(), Scratch() / "other"});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, MountPoint().string()));
}

// A guest that never flushes.
TEST_P(HandedDown, ThatThereAreChangesToCommit) {
  MakeBase();
  auto mount = MountBase({"-o", Resend()});
  Touch(*mount / "dom1");
  const Bytes bytes = RandomBytes(64 * kKiB, 5);
  ASSERT_EQ(WriteDirectly(*mount / "dom1", kMiB, bytes), 0);
  ChangeServers();
  SleepMilliseconds(6000);
  mount->Kill();
  Must(Cowfs({"umount", MountPoint()}));
  mount->MountAgain();
  const File image(*mount / "dom1");
  EXPECT_TRUE(Same(bytes, image.Read(kMiB, bytes.size())));
}

TEST_P(HandedDown, SizesAndWhatLiesBelowThem) {
  Bytes expected = MakeBase(8 * kMiB);
  auto mount = MountBase({"-o", Resend()});
  Touch(*mount / "dom1");
  // Cut into the base, and longer again: zeros, not the base.
  ASSERT_EQ(truncate((*mount / "dom1").c_str(), 3 * kMiB + 5), 0);
  ChangeServers();
  ASSERT_EQ(truncate((*mount / "dom1").c_str(), 6 * kMiB), 0);
  ChangeServers();
  expected.resize(3 * kMiB + 5);
  expected.resize(6 * kMiB, '\0');
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
  {
    const File image(*mount / "dom1");
    posix_fadvise(image.fd(), 0, 0, POSIX_FADV_DONTNEED);
  }
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

INSTANTIATE_TEST_SUITE_P(Resend, HandedDown,
                         testing::Combine(testing::Values("kernel", "slots"),
                                          testing::Values("killed", "restarted")),
                         [](const auto& ways) {
                           return std::string(std::get<0>(ways.param)) + "_" +
                                  std::get<1>(ways.param);
                         });

}  // namespace
}  // namespace cowfs::e2e
