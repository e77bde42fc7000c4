// A disk that fails to sync, under a mount (I8): nothing pretends, not to the same server and not
// to the one that comes after it was killed.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class FailingDisk : public MountTest {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (IsSkipped()) return;
    ::setenv("LD_PRELOAD", FAILING_SYNC_LIBRARY, 1);
    ::setenv("FAILING_SYNC", Orders().c_str(), 1);
    base_ = MakeBase(8 * kMiB);
    mount_ = std::make_unique<Mount>(Base(), MountPoint(), Arguments{"--log-file", Log()});
    Touch(Dom1());
    Touch(Dom2());
    // The first flush of each, so that dom1 has layer 1.
    for (const Path& image : {Dom1(), Dom2()}) {
      const File file(image);
      file.Write(0, old_);
      file.Sync();
    }
    was_ = base_;
    was_.replace(0, old_.size(), old_);
  }
  void TearDown() override {
    mount_.reset();
    ::unsetenv("LD_PRELOAD");
    ::unsetenv("FAILING_SYNC");
    MountTest::TearDown();
  }

  Path Dom1() const { return MountPoint() / "dom1"; }
  Path Dom2() const { return MountPoint() / "dom2"; }
  Path Log() const { return Scratch() / "log"; }
  Path Orders() const { return Scratch() / "orders"; }
  void BreakDisk() const { WriteFile(Orders(), "/layers/1.cow"); }
  void HealDisk() const { WriteFile(Orders(), ""); }

  // A new chunk of dom1 reaches the CoW file, and its flush fails.
  void LoseAFlush() const {
    BreakDisk();
    const File image(Dom1());
    image.Write(kMiB, RandomBytes(kMiB, 2));
    EXPECT_EQ(SyncCode(image), EIO);
    // The kernel would say that all is well now: the pages are clean.
    HealDisk();
  }

  static int SyncCode(const File& file) { return ::fsync(file.fd()) == 0 ? 0 : errno; }
  static int WriteCode(const Path& image) {
    const File file(image, O_RDWR | O_DIRECT);
    const DirectBuffer buffer(4 * kKiB);
    return ::pwrite(file.fd(), buffer.data(), 4 * kKiB, 0) < 0 ? errno : 0;
  }

  void ExpectFailed() const {
    {
      const File image(Dom1());
      EXPECT_EQ(SyncCode(image), EIO);
      EXPECT_EQ(SyncCode(image), EIO);
      // The page cache still has what was lost.
      ::posix_fadvise(image.fd(), 0, 0, POSIX_FADV_DONTNEED);
    }
    EXPECT_EQ(WriteCode(Dom1()), EIO);
    EXPECT_TRUE(Holds(Dom1(), was_));
    EXPECT_TRUE(CowfsJson({"info", Dom1()})["failure"].is_string());
    // The others have nothing to do with it.
    EXPECT_TRUE(CowfsJson({"info", Dom2()})["failure"].is_null());
    const File other(Dom2());
    other.Write(kMiB, old_);
    other.Sync();
  }
  void ExpectWell() const {
    EXPECT_TRUE(Holds(Dom1(), was_));
    EXPECT_TRUE(CowfsJson({"info", Dom1()})["failure"].is_null());
    const Bytes newer = RandomBytes(kMiB, 3);
    {
      const File image(Dom1());
      image.Write(2 * kMiB, newer);
      image.Sync();
    }
    Bytes expected = was_;
    expected.replace(2 * kMiB, kMiB, newer);
    mount_->Kill();
    Must(Cowfs({"umount", MountPoint()}));
    mount_->MountAgain();
    EXPECT_TRUE(Holds(Dom1(), expected));
  }

  const Bytes old_ = RandomBytes(kMiB, 1);
  Bytes base_;
  Bytes was_;  // what dom1 holds after its last flush that succeeded
  std::unique_ptr<Mount> mount_;
};

TEST_F(FailingDisk, AFailedFlushIsNeverTakenBackUntilAnUnmount) {
  LoseAFlush();
  ExpectFailed();
  EXPECT_NE(ReadFile(Log()).find("1.cow"), Bytes::npos);
  // It names the image as people know it, and the ways on.
  EXPECT_TRUE(Mentions(ReadFile(Log()), "error: image dom1: "));
  EXPECT_EQ(ReadFile(Log()).find("image 2"), Bytes::npos);
  EXPECT_TRUE(Mentions(ReadFile(Log()), "cowfs check --clear, or with cowfs umount --force"));
  const Result refused = Cowfs({"umount", MountPoint()});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, "image dom1: Input/output error"));
  const Result forced = Cowfs({"umount", "--force", MountPoint()});
  EXPECT_EQ(forced.status, 1);
  EXPECT_TRUE(Mentions(forced.err, "unmounted, but not all is durable"));
  mount_->MountAgain();
  ExpectWell();
}

TEST_F(FailingDisk, AKilledServerComesBackWithTheFailure) {
  LoseAFlush();
  mount_->Kill();
  Must(Cowfs({"umount", MountPoint()}));
  mount_->MountAgain();
  ExpectFailed();
  Must(Cowfs({"check", "--clear", Dom1()}));
  ExpectWell();
}

}  // namespace
}  // namespace cowfs::e2e
