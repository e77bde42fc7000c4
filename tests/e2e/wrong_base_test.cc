// A base that is written to while it is mounted, or is not what it was at the next mount.

#include <gtest/gtest.h>

#include <random>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class WrongBase : public MountTest {
 protected:
  static constexpr uint64_t kSize = 64 * kMiB;

  Path Log() const { return Scratch() / "log"; }
  Arguments Options() const { return {"--log-file", Log()}; }
  size_t Logged(const std::string& text) const {
    const Bytes log = ReadFile(Log());
    size_t count = 0;
    for (size_t at = log.find(text); at != Bytes::npos; at = log.find(text, at + 1)) ++count;
    return count;
  }

  static bool IsWritten(const Path& mount_or_store) {
    return CowfsJson({"info", mount_or_store})["base_written"].is_string();
  }
  // What was noticed is on record soon after.
  bool Noticed(const Path& mount) const {
    return Eventually([&] { return IsWritten(mount); });
  }

  // A base with data here and there, of which the fingerprint sees only pieces.
  void MakeLargeBase() const {
    const File base(Base(), O_RDWR | O_CREAT);
    base.Truncate(kSize);
    base.Write(5 * kMiB, RandomBytes(kMiB, 1));
    base.Sync();
  }
  // cowfs-format(5): where the piece of 64 KiB number i begins, of 256.
  static uint64_t Piece(uint64_t i) { return kMiB + i * ((kSize - 2 * kMiB - 64 * kKiB) / 255); }
  static uint64_t RandomNumber(uint64_t below) { return std::random_device()() % below; }
  static uint64_t SampledSector() { return Piece(RandomNumber(256)) + 512 * RandomNumber(128); }
  static uint64_t UnsampledSector() {
    const uint64_t begin = Piece(RandomNumber(255)) + 64 * kKiB;
    return begin + 512 * RandomNumber(128);
  }

  // Changes a sector, and puts the times back if told so.
  void ChangeSector(uint64_t offset, bool times_back) const {
    const struct stat before = StatOf(Base());
    const File base(Base());
    Bytes sector = base.Read(offset, 512);
    for (char& byte : sector) byte = static_cast<char>(byte ^ 0x55);
    base.Write(offset, sector);
    base.Sync();
    const timespec times[2] = {before.st_atim, before.st_mtim};
    if (times_back) {
      ASSERT_EQ(futimens(base.fd(), times), 0);
    }
  }
  // A message if it is refused, empty if it is mounted; unmounted again.
  std::string Refusal(Arguments arguments = {}) const {
    std::filesystem::create_directories(MountPoint());
    const Undo undo = UnmountCowfsAtEnd(MountPoint());
    arguments.insert(arguments.begin(), {"mount", Base(), MountPoint(), "--log-file", Log()});
    return Cowfs(arguments).err;
  }
};

TEST_F(WrongBase, AWriterIsNoticedAndInfoKeepsSayingItUntilTheBaseIsAcceptedAnew) {
  MakeBase();
  auto mount = MountBase(Options());
  Touch(*mount / "dom1");
  EXPECT_FALSE(IsWritten(MountPoint()));
  EXPECT_TRUE(Mentions(Must(Cowfs({"info", MountPoint()})), "by nobody"));
  { const File writer(Base(), O_WRONLY); }
  ASSERT_TRUE(Noticed(MountPoint()));
  EXPECT_EQ(Logged(" error: base " + Base().string() + ": was opened for writing"), 1U);
  EXPECT_TRUE(Mentions(Must(Cowfs({"info", MountPoint()})), "may be damaged"));

  mount->Remount();  // nothing was written, and the samples agree
  EXPECT_TRUE(IsWritten(MountPoint()));
  EXPECT_EQ(Logged(" warning: base " + Base().string() + ": accepted: somebody wrote to it"), 1U);
  mount->Unmount();
  EXPECT_TRUE(IsWritten(Store()));
  EXPECT_EQ(Refusal({"--accept-changed-base"}), "");
  EXPECT_FALSE(IsWritten(Store()));
}

TEST_F(WrongBase, AWriterIsRememberedWhenTheServerIsKilled) {
  MakeBase();
  auto mount = MountBase();
  { const File writer(Base(), O_WRONLY); }
  ASSERT_TRUE(Noticed(MountPoint()));
  mount->Kill();
  Must(Cowfs({"umount", MountPoint()}));
  mount->MountAgain();
  EXPECT_TRUE(IsWritten(MountPoint()));
}

TEST_F(WrongBase, AWriterThatIsThereAtMountIsNoticed) {
  MakeBase();
  const LoopDevice writable(Base());
  auto mount = MountBase(Options());
  EXPECT_TRUE(IsWritten(MountPoint()));
  EXPECT_EQ(Logged(" error: base " + Base().string() + ": is open for writing"), 1U);
}

TEST_F(WrongBase, ReadersCommandsAndASecondMountCauseNoAlarm) {
  const Bytes content = MakeBase();
  auto mount = MountBase();
  const Mount second(Base(), Scratch() / "other vms", {"--store", Scratch() / "other.cowfs"});
  WriteFile(*mount / "dom1", "x");
  Touch(second / "dom1");
  EXPECT_TRUE(Holds(second / "dom1", content));
  {
    const LoopDevice reader(Base(), {"-r"});
    EXPECT_EQ(Sha256(reader.device()), Sha256(Base()));
  }
  Must(Execute({"cp", Base(), Scratch() / "copy"}));
  Must(Cowfs({"info", MountPoint(), Store(), *mount / "dom1"}));
  mount->Remount();
  EXPECT_FALSE(IsWritten(MountPoint()));
  EXPECT_FALSE(IsWritten(second.directory()));
  // Now both have to notice.
  { const File writer(Base(), O_WRONLY); }
  EXPECT_TRUE(Noticed(MountPoint()));
  EXPECT_TRUE(Noticed(second.directory()));
}

TEST_F(WrongBase, AWriterOfABlockDeviceIsNoticedByInotifyAndTheLogSaysOnceHowFarItGoes) {
  MakeBase();
  const LoopDevice golden(Base());
  const Mount mount(golden.device(), MountPoint(),
                    {"--store", Scratch() / "golden.cowfs", "--log-file", Log()});
  EXPECT_EQ(Logged("watched for writers by inotify"), 1U);
  Must(Execute({"cmp", golden.device(), Base()}));
  EXPECT_FALSE(IsWritten(MountPoint()));
  {
    const File writer(golden.device(), O_WRONLY);
    writer.Write(512, "changed");
    EXPECT_TRUE(Noticed(MountPoint()));
  }
  EXPECT_EQ(Logged(" error: base " + golden.device() + ": was written to"), 1U);
  EXPECT_EQ(Logged("watched for writers by inotify"), 1U);
}

TEST_F(WrongBase, AChangedSectorInASampleIsRefusedWhateverTheTimesSay) {
  MakeLargeBase();
  MountBase().reset();
  for (const bool times_back : {false, true}) {
    const uint64_t sector = SampledSector();
    const struct stat before = StatOf(Base());
    ChangeSector(sector, times_back);
    EXPECT_TRUE(Mentions(Refusal(), "fingerprint differs")) << sector;
    // Restored with its content and time, as from a backup, it serves again.
    ChangeSector(sector, false);
    const timespec times[2] = {before.st_atim, before.st_mtim};
    ASSERT_EQ(utimensat(AT_FDCWD, Base().c_str(), times, 0), 0);
    EXPECT_EQ(Refusal(), "");
  }
}

TEST_F(WrongBase, AChangedSectorBetweenTheSamplesIsRefusedByItsTimeAlone) {
  MakeLargeBase();
  MountBase().reset();
  const uint64_t sector = UnsampledSector();
  ChangeSector(sector, false);
  EXPECT_TRUE(Mentions(Refusal(), "modification time is another")) << sector;
  EXPECT_EQ(Refusal({"--accept-changed-base"}), "");
  // With the times put back nothing tells, as cowfs-consistency(7) says.
  ChangeSector(UnsampledSector(), true);
  EXPECT_EQ(Refusal(), "");
  EXPECT_FALSE(IsWritten(Store()));
}

TEST_F(WrongBase, AChangeWhileMountedIsToldAlsoIfTheTimesArePutBack) {
  MakeLargeBase();
  auto mount = MountBase();
  ChangeSector(UnsampledSector(), true);
  EXPECT_TRUE(Noticed(MountPoint()));
  mount->Remount();
  EXPECT_TRUE(IsWritten(MountPoint()));
  ChangeSector(SampledSector(), true);
  mount->Unmount();
  EXPECT_TRUE(Mentions(Refusal(), "fingerprint differs"));
}

TEST_F(WrongBase, AMovedOrCopiedBaseIsAcceptedAndTheWriterStaysOnRecord) {
  MakeLargeBase();
  auto mount = MountBase();
  { const File writer(Base(), O_WRONLY); }
  ASSERT_TRUE(Noticed(MountPoint()));
  mount->Unmount();
  Must(Execute({"cp", "-p", "--sparse=always", Base(), Scratch() / "copy"}));
  std::filesystem::rename(Scratch() / "copy", Base());
  EXPECT_EQ(Refusal(), "");
  EXPECT_TRUE(IsWritten(Store()));
  std::filesystem::rename(Base(), Scratch() / "moved.img");
  {
    const Mount moved(Scratch() / "moved.img", MountPoint(), {"--store", Store()});
    EXPECT_TRUE(IsWritten(MountPoint()));
    EXPECT_EQ(CowfsJson({"info", MountPoint()})["base"], (Scratch() / "moved.img").string());
  }
}

}  // namespace
}  // namespace cowfs::e2e
