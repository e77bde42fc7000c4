#include "store/base_watch.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spdlog/logger.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "store/synchronized.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// The default of /proc/sys/fs/lease-break-time, after which the kernel lets a writer pass by
/// itself: what takes longer than half of it has waited for that.
constexpr seconds kLeaseBreak{45};

class BaseWatchTest : public ::testing::Test {
 protected:
  BaseWatchTest() { write_file(path(), pattern(1, 100'000)); }

  [[nodiscard]] std::string path() const { return directory_ / "base.img"; }
  BaseWatch::Alarm alarm() {
    return [this](const std::string& what) { alarms_.lock()->push_back(what); };
  }
  std::vector<std::string> alarms() { return *alarms_.lock(); }
  bool eventually(const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + kLeaseBreak / 2;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(milliseconds(5));
    }
    return true;
  }
  bool alarm_number(size_t count) {
    return eventually([&] { return alarms().size() >= count; });
  }

  TempDir directory_;
  const std::shared_ptr<spdlog::logger> log_ = test_log();
  Synchronized<std::vector<std::string>> alarms_;
};

TEST_F(BaseWatchTest, WriterIsNoticedAndLetPass) {
  const Base base(path());
  const BaseWatch watch(base.file(), alarm(), *log_);
  const auto begin = std::chrono::steady_clock::now();
  const File writer(path(), O_RDWR);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, kLeaseBreak / 2);
  ASSERT_TRUE(alarm_number(1));
  EXPECT_EQ(alarms()[0], "was opened for writing");
}

TEST_F(BaseWatchTest, TruncateIsNoticed) {
  const Base base(path());
  const BaseWatch watch(base.file(), alarm(), *log_);
  ASSERT_EQ(::truncate(path().c_str(), 50'000), 0);
  EXPECT_TRUE(alarm_number(1));
}

TEST_F(BaseWatchTest, WriterUnderAnotherNameIsNoticed) {
  const Base base(path());
  ASSERT_EQ(::link(path().c_str(), (directory_ / "other").c_str()), 0);
  const BaseWatch watch(base.file(), alarm(), *log_);
  ASSERT_EQ(::rename(path().c_str(), (directory_ / "moved").c_str()), 0);
  const File writer(directory_ / "other", O_WRONLY);
  EXPECT_TRUE(alarm_number(1));
}

TEST_F(BaseWatchTest, ReadersAndOtherWatchesCauseNoAlarm) {
  const Base base(path());
  const Base same(path());
  const BaseWatch watch(base.file(), alarm(), *log_);
  {
    std::atomic<unsigned> others = 0;
    const BaseWatch second(
        same.file(), [&](const std::string&) { ++others; }, *log_);
    EXPECT_EQ(read_file(path()).size(), 100'000U);
    void* mapped = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, base.file().fd(), 0);
    ASSERT_NE(mapped, MAP_FAILED);
    ::munmap(mapped, 4096);
    EXPECT_EQ(base.fingerprint(), same.fingerprint());
    EXPECT_EQ(others, 0U);
  }
  EXPECT_TRUE(alarms().empty());
  const File writer(path(), O_WRONLY);
  ASSERT_TRUE(alarm_number(1));
  EXPECT_EQ(alarms().size(), 1U);
}

TEST_F(BaseWatchTest, EveryWatchNoticesTheWriter) {
  const Base base(path());
  std::atomic<unsigned> others = 0;
  const BaseWatch watch(base.file(), alarm(), *log_);
  const BaseWatch second(
      base.file(), [&](const std::string&) { ++others; }, *log_);
  const File writer(path(), O_WRONLY);
  EXPECT_TRUE(alarm_number(1));
  EXPECT_TRUE(eventually([&] { return others == 1; }));
}

TEST_F(BaseWatchTest, WriterThatWasThereBeforeIsToldOnce) {
  const Base base(path());
  auto writer = std::make_unique<File>(path(), O_WRONLY);
  const BaseWatch watch(base.file(), alarm(), *log_, milliseconds(1));
  EXPECT_EQ(alarms(), std::vector<std::string>{"is open for writing"});
  writer->write(filled(10, 1), 0);
  std::this_thread::sleep_for(milliseconds(50));  // some rounds
  EXPECT_EQ(alarms().size(), 1U);
  // Once it has closed the base, the next one is noticed again.
  writer.reset();
  EXPECT_TRUE(eventually([&] {
    const File next(path(), O_WRONLY);
    return alarms().size() >= 2;
  }));
}

TEST_F(BaseWatchTest, ThereIsNoSecondAlarmDuringThePause) {
  const Base base(path());
  const BaseWatch watch(base.file(), alarm(), *log_, std::chrono::hours(1));
  for (int i = 0; i < 20; ++i) {
    const File writer(path(), O_WRONLY);
    ASSERT_TRUE(alarm_number(1));
  }
  EXPECT_EQ(alarms().size(), 1U);
}

TEST_F(BaseWatchTest, AfterThePauseTheNextWriterIsNoticed) {
  const Base base(path());
  const BaseWatch watch(base.file(), alarm(), *log_, milliseconds(1));
  EXPECT_TRUE(eventually([&] {
    const File writer(path(), O_WRONLY);
    return alarms().size() >= 3;
  }));
}

TEST_F(BaseWatchTest, WithoutALeaseInotifyTellsOfWrites) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root: gives CAP_LEASE up for a moment";
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
  ASSERT_EQ(::chmod(path().c_str(), 0644), 0);
  const Base base(path());
  ASSERT_EQ(::seteuid(65534), 0);
  {
    const BaseWatch watch(base.file(), alarm(), *log_, std::chrono::hours(1));
    ASSERT_EQ(::seteuid(0), 0);
    EXPECT_EQ(read_file(path()).size(), 100'000U);
    EXPECT_TRUE(alarms().empty());
    const File writer(path(), O_WRONLY);
    writer.write(filled(10, 1), 0);
    writer.write(filled(10, 2), 0);
    ASSERT_TRUE(alarm_number(1));
    EXPECT_EQ(alarms(), std::vector<std::string>{"was written to"});
  }
  EXPECT_EQ(alarms().size(), 1U);
}

TEST_F(BaseWatchTest, NoWriterWaitsForAWatchThatHasEnded) {
  const Base base(path());
  { const BaseWatch watch(base.file(), alarm(), *log_); }
  const File writer(path(), O_WRONLY | O_NONBLOCK);  // EWOULDBLOCK while somebody has a lease
  EXPECT_TRUE(alarms().empty());
}

class BaseWrittenTest : public StoreFixture {
 protected:
  BaseWrittenTest() {
    make_base(pattern(1, 50'000));
    open().note_base_written(base_path(), "was opened for writing");
  }
};

TEST_F(BaseWrittenTest, IsRememberedAlsoByTheNextOpening) {
  EXPECT_TRUE(store_->base_written_ns());
  reopen();
  EXPECT_TRUE(store_->base_written_ns());
  EXPECT_TRUE(summarize_store(store_path()).base_written_ns);
}

TEST_F(BaseWrittenTest, IsForgottenWhenTheBaseIsAcceptedAnew) {
  EXPECT_TRUE(store_->close());
  crash();
  Store::Options accepting = options();
  accepting.accept_changed_base = true;
  EXPECT_FALSE(Store(accepting).base_written_ns());
  EXPECT_FALSE(open().base_written_ns());
}

}  // namespace
}  // namespace cowfs::test
