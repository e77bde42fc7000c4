// What a failed system call or commit leaves (I4, I7, I8): every step of a scenario is made to fail
// in turn, and the image is looked at as it is, and as it is after a crash.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <functional>
#include <set>
#include <thread>

#include "store/image.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

constexpr size_t kChunks = 8;
constexpr size_t kSize = kChunks * 4096;

class FaultTest : public StoreFixture {
 protected:
  FaultTest() {
    make_base(pattern(1, kSize));
    open();
  }
  [[nodiscard]] Bytes base_chunk(size_t chunk) const {
    const auto begin = base_content_.begin() + static_cast<int64_t>(chunk * 4096);
    return {begin, begin + 4096};
  }
  void fail(FileOperation which, int code, const std::string& suffix = ".cow") {
    faults_.set([=](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
      return operation == which && path.ends_with(suffix) ? code : 0;
    });
  }
  void break_commits() {
    run_sql(catalog_path(),
            "CREATE TRIGGER fault BEFORE INSERT ON map_page BEGIN SELECT RAISE(ABORT, 'x'); END");
  }
  void mend_commits() { run_sql(catalog_path(), "DROP TRIGGER fault"); }
};

TEST_F(FaultTest, FailedSyncFailsTheImageForGoodAndReadsGoOn) {
  {
    const auto image = use("a");
    write(*image, 0, filled(4096, 1));
    image->flush();
    write(*image, 4096, filled(4096, 2));
    fail(FileOperation::sync, ENOSPC);
    EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
    faults_.clear();
    EXPECT_TRUE(image->failed());
    // Nothing pretends: the second flush does not succeed because the pages are clean now.
    EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
    EXPECT_EQ(error_of([&] { image->flush_all(); }).code(), EIO);
    EXPECT_EQ(error_of([&] { write(*image, 0, filled(1, 1)); }).code(), EIO);
    EXPECT_EQ(error_of([&] { image->make_zero(0, 4096); }).code(), EIO);
    EXPECT_EQ(error_of([&] { image->resize(1); }).code(), EIO);
    EXPECT_EQ(error_of([&] { image->extend(1 << 20); }).code(), EIO);
    EXPECT_EQ(error_of([&] { image->reserve(0, 1); }).code(), EIO);
    EXPECT_EQ(error_of([&] { image->copy_from(*image, 0, 8192, 4096); }).code(), EIO);
    EXPECT_EQ(content(*image, 0, 4096), filled(4096, 1));
    EXPECT_FALSE(image->dirty());
  }
  EXPECT_FALSE(store_->close());
  store_->clear_failures();
  reopen_after_crash();
  const auto image = use("a");
  EXPECT_EQ(content(*image, 0, 4096), filled(4096, 1));
  EXPECT_EQ(content(*image, 4096, 4096), base_chunk(1));  // never committed
  write(*image, 4096, filled(4096, 3));
  image->flush();
}

TEST_F(FaultTest, OtherImagesGoOnAfterAFailure) {
  const auto a = use("a");
  const auto b = use("b");
  write(*a, 0, filled(10, 1));
  write(*b, 0, filled(10, 1));
  fail(FileOperation::sync, EIO, "/1.cow");
  EXPECT_THROW(a->flush(), Error);
  EXPECT_NO_THROW(b->flush());
}

TEST_F(FaultTest, FailedSyncOfTheFolderIsAFailure) {
  {
    const auto image = use("a");
    write(*image, 0, filled(10, 1));
    fail(FileOperation::sync, EIO, "/layers");
    EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
  }
  faults_.clear();
  reopen_after_crash();
  EXPECT_EQ(content(*use("a")), base_content_);
}

TEST_F(FaultTest, FailedCommitFailsTheImageForGood) {
  {
    const auto image = use("a");
    write(*image, 0, filled(4096, 1));
    break_commits();
    EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
    mend_commits();
    EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
    EXPECT_EQ(content(*image), base_content_);
  }
  reopen_after_crash();
  EXPECT_EQ(content(*use("a")), base_content_);
}

TEST_F(FaultTest, FailedCommitOfAShrinkFailsTheImage) {
  {
    const auto image = use("a");
    write(*image, 0, filled(4 * 4096, 1));
    break_commits();
    EXPECT_EQ(error_of([&] { image->resize(8192 + 1); }).code(), EIO);
    mend_commits();
    EXPECT_TRUE(image->failed());
  }
  reopen_after_crash();
  EXPECT_EQ(content(*use("a")), base_content_);
}

TEST_F(FaultTest, ShrinkThatCannotReadTheMapLosesNoMark) {
  // The marks of changed pages are taken before the map page at the cut is read; if that fails, a
  // later flush must not succeed as if those pages were committed.
  {
    const auto image = use("a");
    image->resize(uint64_t{20} << 30);
    write(*image, uint64_t{19} << 30, filled(4096, 1));
    image->flush();
  }
  store_->find("a")->retire_if_idle();
  const auto image = use("a");
  write(*image, 0, filled(4096, 2));
  run_sql(catalog_path(), "UPDATE map_page SET bits = x'00' WHERE page > 100");
  try {
    image->resize((uint64_t{19} << 30) + 4096);
  } catch (const Error&) {
  }
  run_sql(catalog_path(), "DELETE FROM map_page WHERE page > 100");
  bool flushed = false;
  try {
    image->flush();
    flushed = true;
  } catch (const Error&) {
  }
  EXPECT_EQ(flushed, map_on_disk(catalog_path(), image->layer_id(), 1) == "p");
}

// ---- the failed state (I8) ----------------------------------------------------------------------

TEST_F(FaultTest, WhatAFailedFlushLeftUncommittedIsForgottenAtOnce) {
  const auto image = use("a");
  write(*image, 0, filled(3 * 4096, 1));
  image->flush();
  const uint64_t size = image->size();
  image->make_zero(4096, 4096);  // present to zero: not to be punched
  write(*image, 4 * 4096, filled(4096, 2));
  image->extend(size + 8192);
  fail(FileOperation::sync, EIO);
  EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
  faults_.clear();
  EXPECT_EQ(image->size(), size);
  EXPECT_EQ(content(*image, 0, 3 * 4096), filled(3 * 4096, 1));
  EXPECT_EQ(content(*image, 4 * 4096, 4096), base_chunk(4));
  EXPECT_EQ(image->own_bytes() / 4096, 4U) << "nothing was punched";
}

TEST_F(FaultTest, SharingThatWasNotCommittedIsForgottenToo) {
  const auto image = use("a", true);
  write(*image, 0, base_content_);
  EXPECT_EQ(content(*image), base_content_);
  run_sql(
      catalog_path(),
      "CREATE TRIGGER fault BEFORE UPDATE OF size ON image BEGIN SELECT RAISE(ABORT, 'x'); END");
  EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
  mend_commits();
  EXPECT_EQ(image->size(), 0U);
}

TEST_F(FaultTest, FailedStateOutlivesAServerThatIsKilled) {
  {
    const auto image = use("a");
    write(*image, 0, filled(4096, 1));
    fail(FileOperation::sync, EIO);
    EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
    faults_.clear();
  }
  reopen_after_crash();
  {
    const auto image = use("a");
    EXPECT_TRUE(image->failed());
    EXPECT_TRUE(image->failure()->find("fdatasync") != std::string::npos ||
                image->failure()->find("fsync") != std::string::npos)
        << *image->failure();
    EXPECT_EQ(error_of([&] { write(*image, 0, filled(1, 1)); }).code(), EIO);
    EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
    EXPECT_EQ(content(*image, 0, 4096), base_chunk(0));
    const auto other = use("b");
    write(*other, 0, filled(4096, 3));
    other->flush();
  }
  // An unmount in order ends it.
  EXPECT_FALSE(store_->close());
  store_->clear_failures();
  reopen_after_crash();
  const auto image = use("a");
  EXPECT_FALSE(image->failed());
  write(*image, 0, filled(4096, 1));
  image->flush();
}

TEST_F(FaultTest, FailedStateEndsByClearingItAndTheImageGoesOnFromItsLastCommit) {
  const auto image = use("a");
  write(*image, 0, filled(4096, 1));
  image->flush();
  write(*image, 4096, filled(4096, 2));
  fail(FileOperation::sync, EIO);
  EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
  faults_.clear();
  {
    const auto second = use("a");
    EXPECT_EQ(error_of([&] { image->clear_failure(true); }).code(), EBUSY);
  }
  image->clear_failure(true);
  write(*image, 2 * 4096, filled(4096, 3));
  image->flush();
  EXPECT_EQ(content(*image, 0, 4096), filled(4096, 1));
  EXPECT_EQ(content(*image, 4096, 4096), base_chunk(1));
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 4), "p.p.");
}

TEST_F(FaultTest, AWriteThatWasUnderWayWhenTheFlushFailedLeavesNoChunkPresent) {
  const auto image = use("a");
  write(*image, 0, filled(4096, 1));
  std::atomic<bool> writing = false;
  std::atomic<bool> go_on = false;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t offset, uint64_t) {
    if (!path.ends_with(".cow")) return 0;
    if (operation == FileOperation::sync) return EIO;
    if (operation == FileOperation::write && offset == 5 * 4096) {
      writing = true;
      while (!go_on) std::this_thread::yield();
    }
    return 0;
  });
  std::thread writer([&] { write(*image, 5 * 4096, filled(4096, 2)); });
  while (!writing) std::this_thread::yield();
  std::thread flusher([&] { EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO); });
  while (!image->failed()) std::this_thread::yield();
  go_on = true;
  writer.join();
  flusher.join();
  EXPECT_EQ(content(*image, 5 * 4096, 4096), base_chunk(5));
}

TEST_F(FaultTest, WhereTheCatalogCannotBeReadAfterAFailureReadsFailToo) {
  const auto image = use("a");
  write(*image, 0, filled(4096, 1));
  image->flush();
  write(*image, 4096, filled(4096, 2));
  fail(FileOperation::sync, EIO);
  run_sql(catalog_path(), "UPDATE map_page SET bits = x'00'");
  EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
  faults_.clear();
  EXPECT_EQ(error_of([&] { content(*image, 0, 4096); }).code(), EIO);
}

TEST_F(FaultTest, ErrorReachesEveryFlushThatSharedTheCommit) {
  const auto image = use("a");
  write(*image, 0, filled(10, 1));
  fail(FileOperation::sync, EIO);
  std::atomic<int> failed = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      try {
        image->flush();
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), EIO);
        ++failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 4);
}

TEST_F(FaultTest, FailedFirstWriteLeavesTheChunkAsItWas) {
  const auto image = use("a");
  fail(FileOperation::write, ENOSPC);
  EXPECT_EQ(error_of([&] { write(*image, 100, filled(10, 1)); }).code(), ENOSPC);
  EXPECT_EQ(error_of([&] { write(*image, 90'000, filled(10, 1)); }).code(), ENOSPC);
  faults_.clear();
  EXPECT_EQ(content(*image), base_content_);
  EXPECT_EQ(image->size(), kSize);
  EXPECT_FALSE(image->failed());
  write(*image, 100, filled(10, 1));
  EXPECT_EQ(content(*image, 100, 10), filled(10, 1));
}

TEST_F(FaultTest, FullSpaceDamagesNothingAndOverwritesGoOn) {
  // I7: with no room for new chunks reads, flushes and overwrites in place work.
  const auto image = use("a");
  write(*image, 0, filled(4096, 1));
  faults_.set([](const std::string& path, FileOperation operation, uint64_t offset, uint64_t) {
    return operation == FileOperation::write && path.ends_with(".cow") && offset >= 4096 ? ENOSPC
                                                                                         : 0;
  });
  EXPECT_EQ(error_of([&] { write(*image, 4096, filled(4096, 2)); }).code(), ENOSPC);
  write(*image, 10, filled(10, 3));
  image->flush();
  EXPECT_EQ(content(*image, 4096, 4096), base_chunk(1));
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 2), "p.");
}

TEST_F(FaultTest, FailedBaseReadIsAnErrorAndNoZeros) {
  const auto image = use("a");
  fail(FileOperation::read, EIO, "base.img");
  EXPECT_EQ(error_of([&] { content(*image, 0, 10); }).code(), EIO);
  EXPECT_EQ(error_of([&] { write(*image, 10, filled(10, 1)); }).code(), EIO);
  faults_.clear();
  EXPECT_EQ(content(*image), base_content_);
}

TEST_F(FaultTest, FailedPunchLeaksSpaceAndNothingElse) {
  const auto image = use("a");
  write(*image, 0, filled(kSize, 1));
  image->flush();
  fail(FileOperation::punch, EOPNOTSUPP);
  image->make_zero(0, 8192);
  EXPECT_NO_THROW(image->flush());
  EXPECT_NO_THROW(image->resize(3 * 4096));
  EXPECT_FALSE(image->failed());
  EXPECT_EQ(content(*image, 0, 8192), filled(8192, 0));
  image->resize(kSize);
  EXPECT_EQ(content(*image, 3 * 4096, kSize), filled(kSize - 3 * 4096, 0));
}

TEST_F(FaultTest, ReserveOfMoreThanThereIsAsksTheHostForNothing) {
  const auto image = use("a");
  bool asked = false;
  faults_.set([&](const std::string&, FileOperation operation, uint64_t, uint64_t) {
    asked = asked || operation == FileOperation::allocate;
    return 0;
  });
  EXPECT_EQ(error_of([&] { image->reserve(0, kMaxImageSize); }).code(), ENOSPC);
  EXPECT_FALSE(asked) << "the host would take all that there is before it fails";
}

TEST_F(FaultTest, ReserveThatTheHostCannotIsAnError) {
  const auto image = use("a");
  fail(FileOperation::allocate, EOPNOTSUPP);
  EXPECT_EQ(error_of([&] { image->reserve(0, 4096); }).code(), EOPNOTSUPP);
  EXPECT_FALSE(image->failed());
}

TEST_F(FaultTest, CloneThatFailsIsAnErrorAndOneThatIsRefusedIsCopied) {
  const auto source = use("a");
  write(*source, 0, filled(8192, 1));
  const auto target = use("b", true);
  fail(FileOperation::clone, EOPNOTSUPP);
  EXPECT_EQ(error_of([&] { target->copy_from(*source, 0, 0, 8192); }).code(), EOPNOTSUPP);
  faults_.clear();
  EXPECT_EQ(target->copy_from(*source, 0, 0, 4096), 4096U);
  EXPECT_EQ(content(*target), filled(4096, 1));
}

// ---- the n-th call fails, for every n ----------------------------------------------------------

/// A scenario's step, and the values that each chunk may have afterwards.
struct Step {
  std::function<void(Image&)> action;
  std::function<void(std::vector<std::set<Bytes>>&)> after;
  bool flush = false;  ///< afterwards only what is there now is allowed
};

class EveryFaultTest : public FaultTest {
 protected:
  /// Runs the steps with the n-th operation on the store's files failing, and all after it if
  /// `for_good`; then crashes. Returns whether there was an n-th.
  bool run(const std::vector<Step>& steps, int n, bool for_good) {
    const std::string name = "i" + std::to_string(n) + (for_good ? "g" : "o");
    std::vector<std::set<Bytes>> allowed(kChunks);
    for (size_t i = 0; i < kChunks; ++i) allowed[i] = {base_chunk(i)};
    std::atomic<int> seen = 0;
    std::atomic<bool> fired = false;
    std::atomic<bool> armed = false;  // while a step runs, not while the test looks
    {
      const auto image = use(name);
      image->flush();
      faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
        if (!armed || path.ends_with("base.img")) return 0;
        if (operation == FileOperation::open && !path.ends_with(".cow")) return 0;
        const int mine = seen++;
        if (mine != n && !(for_good && fired)) return 0;
        fired = true;
        return EIO;
      });
      for (const Step& step : steps) {
        bool good = true;
        armed = true;
        try {
          step.action(*image);
        } catch (const Error&) {
          good = false;
        }
        armed = false;
        // A step that failed has happened, or not, or in part.
        std::vector<std::set<Bytes>> next = allowed;
        step.after(next);
        for (size_t i = 0; i < kChunks; ++i) {
          allowed[i] = next[i];
          if (step.flush && good) allowed[i] = {chunk_of(*image, i)};
        }
        check(*image, allowed, name + " live");
      }
    }
    faults_.clear();
    reopen_after_crash();
    check(*use(name), allowed, name + " after the crash");
    return fired;
  }
  static Bytes chunk_of(Image& image, size_t chunk) {
    Bytes found = content(image, chunk * 4096, 4096);
    found.resize(4096);
    return found;
  }
  static void check(Image& image, const std::vector<std::set<Bytes>>& allowed,
                    const std::string& where) {
    for (size_t i = 0; i < kChunks; ++i) {
      const Bytes found = chunk_of(image, i);
      EXPECT_TRUE(allowed[i].contains(found))
          << where << ": chunk " << i << " begins with " << static_cast<int>(found[0]);
    }
  }
  static Step write_step(size_t chunk, int value) {
    return {[=](Image& image) { write(image, chunk * 4096, filled(4096, value)); },
            [=](auto& allowed) { allowed[chunk].insert(filled(4096, value)); }};
  }
  static Step zero_step(size_t chunk) {
    return {[=](Image& image) { image.make_zero(chunk * 4096, 4096); },
            [=](auto& allowed) { allowed[chunk].insert(filled(4096, 0)); }};
  }
  static Step flush_step() {
    return {[](Image& image) { image.flush(); }, [](auto&) {}, true};
  }
  static Step resize_step(size_t size) {
    return {[=](Image& image) { image.resize(size); },
            [=](auto& allowed) {
              for (size_t i = size / 4096; i < kChunks; ++i) allowed[i].insert(filled(4096, 0));
            }};
  }
  void run_all(const std::vector<Step>& steps) {
    for (const bool for_good : {false, true}) {
      for (int n = 0; run(steps, n, for_good); ++n) {
        ASSERT_LT(n, 200);
        if (HasFailure()) return;
      }
    }
  }
};

TEST_F(EveryFaultTest, WritesFlushesAndTrims) {
  run_all({write_step(0, 1), write_step(1, 2), flush_step(), zero_step(0), write_step(2, 3),
           flush_step(), write_step(0, 4), zero_step(1), write_step(1, 5), write_step(2, 6),
           flush_step(), zero_step(2), write_step(5, 7)});
}

TEST_F(EveryFaultTest, ShrinkAndGrow) {
  run_all({write_step(6, 1), write_step(7, 2), flush_step(), resize_step(5 * 4096),
           resize_step(kSize), flush_step(), write_step(7, 3), flush_step()});
}

}  // namespace
}  // namespace cowfs::test
