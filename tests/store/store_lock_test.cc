#include "store/store_lock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <optional>
#include <thread>

#include "tests/store/support.h"

namespace cowfs::test {
namespace {

/// A mount point that is one, so that its holder does not look as if it were ending.
constexpr const char* kMount = "/proc";

class StoreLockTest : public ::testing::Test {
 protected:
  [[nodiscard]] static Holder self(const std::string& mount = "", bool ending = false) {
    return {.pid = ::getpid(), .mount = mount, .ending = ending};
  }
  TempDir directory_;
};

TEST_F(StoreLockTest, NobodyHoldsAFreshStore) {
  EXPECT_FALSE(StoreLock::holder(directory_.path()));
  { const StoreLock lock(directory_.path(), self()); }
  EXPECT_FALSE(StoreLock::holder(directory_.path()));
}

TEST_F(StoreLockTest, HolderIsTold) {
  const StoreLock lock(directory_.path(), self("/mnt/my vms\\x"));
  const auto holder = StoreLock::holder(directory_.path());
  ASSERT_TRUE(holder);
  EXPECT_EQ(holder->pid, ::getpid());
  EXPECT_EQ(holder->mount, "/mnt/my vms\\x");
  EXPECT_FALSE(holder->ending);
  lock.announce(self("/m", true));
  EXPECT_TRUE(StoreLock::holder(directory_.path())->ending);
  EXPECT_EQ(StoreLock::holder(directory_.path())->mount, "/m");
}

TEST_F(StoreLockTest, SecondHolderIsRefusedAndTheFirstIsNamed) {
  const StoreLock lock(directory_.path(), self(kMount));
  const Error error = error_of([&] { const StoreLock second(directory_.path(), self()); });
  EXPECT_EQ(error.code(), EBUSY);
  const std::string text = error.what();
  EXPECT_NE(text.find(std::to_string(::getpid())), std::string::npos) << text;
  EXPECT_NE(text.find(kMount), std::string::npos) << text;
}

TEST_F(StoreLockTest, EndingHolderIsWaitedFor) {
  std::optional<StoreLock> lock(std::in_place, directory_.path(), self(kMount));
  lock->announce(self(kMount, true));
  std::thread ender([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    lock.reset();
  });
  { const StoreLock second(directory_.path(), self()); }
  ender.join();
}

TEST_F(StoreLockTest, HolderWhoseMountIsGoneIsWaitedFor) {
  std::optional<StoreLock> lock(std::in_place, directory_.path(), self("/no/such/mount"));
  std::thread ender([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    lock.reset();
  });
  { const StoreLock second(directory_.path(), self()); }
  ender.join();
}

TEST_F(StoreLockTest, TextOfADeadProcessBlocksNobody) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ASSERT_GT(child, 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  { const StoreLock lock(directory_.path(), {.pid = child, .mount = kMount, .ending = false}); }
  // Somebody looks who has it, as `cowfs ls` does, and has the lock for that moment.
  std::optional<File> looker(std::in_place, directory_ / "lock", O_RDONLY);
  ASSERT_TRUE(looker->try_lock());
  std::thread ender([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    looker.reset();
  });
  { const StoreLock second(directory_.path(), self()); }
  ender.join();
}

// Somebody may take it for a left-over of a server that died.
TEST_F(StoreLockTest, TheLockHoldsThoughItsFileIsRemovedOrReplaced) {
  const StoreLock lock(directory_.path(), self(kMount));
  for (const bool replaced : {false, true}) {
    ::unlink((directory_ / "lock").c_str());
    if (replaced) write_file(directory_ / "lock", {});
    const Error error = error_of([&] { const StoreLock second(directory_.path(), self()); });
    EXPECT_EQ(error.code(), EBUSY);
    const std::string text = error.what();
    EXPECT_NE(text.find("process " + std::to_string(::getpid())), std::string::npos) << text;
    EXPECT_NE(text.find("removed or replaced"), std::string::npos) << text;
    ASSERT_TRUE(StoreLock::holder(directory_.path()));
    EXPECT_EQ(StoreLock::holder(directory_.path())->pid, ::getpid());
  }
}

TEST_F(StoreLockTest, AProgramThatLocksTheFileAloneIsRespected) {
  write_file(directory_ / "lock", {});
  const File other(directory_ / "lock", O_RDWR);
  const std::string text = "pid " + std::to_string(::getpid()) + "\nmount /proc\nstate open\n";
  other.write(std::as_bytes(std::span(text)), 0);
  ASSERT_TRUE(other.try_lock());
  EXPECT_EQ(error_of([&] { const StoreLock second(directory_.path(), self()); }).code(), EBUSY);
  EXPECT_EQ(StoreLock::holder(directory_.path())->mount, "/proc");
}

TEST_F(StoreLockTest, GarbageInTheFileIsNoHolder) {
  write_file(directory_ / "lock", pattern(1, 20000));
  const StoreLock lock(directory_.path(), self(kMount));
  EXPECT_EQ(StoreLock::holder(directory_.path())->pid, ::getpid());
}

TEST_F(StoreLockTest, AnotherNameOfAFileIsNotWrittenTo) {
  const Bytes own = pattern(1, 100);
  write_file(directory_ / "stranger", own);
  ASSERT_EQ(::link((directory_ / "stranger").c_str(), (directory_ / "lock").c_str()), 0);
  EXPECT_EQ(error_of([&] { const StoreLock lock(directory_.path(), self()); }).code(), EINVAL);
  EXPECT_EQ(read_file(directory_ / "stranger"), own);
}

TEST_F(StoreLockTest, LinkInPlaceOfTheFileIsRefused) {
  ASSERT_EQ(::symlink("/tmp/elsewhere", (directory_ / "lock").c_str()), 0);
  EXPECT_EQ(error_of([&] { const StoreLock lock(directory_.path(), self()); }).code(), ELOOP);
}

}  // namespace
}  // namespace cowfs::test
