#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>

#include "store/image.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

/// What of an image is durable, from when on, and what a crash leaves of it.
class ImageCommitTest : public StoreFixture {
 protected:
  ImageCommitTest() {
    make_base(pattern(1, 10 * 4096 + 1234));
    open();
  }
};

TEST_F(ImageCommitTest, FlushedContentIsThereAfterACrash) {
  {
    const auto image = use("a");
    write(*image, 5000, pattern(7, 10'000));
    image->make_zero(0, 4096);
    image->flush();
  }
  reopen_after_crash();
  Bytes expected = over_base(5000, pattern(7, 10'000));
  std::fill_n(expected.begin(), 4096, std::byte{0});
  EXPECT_EQ(content(*use("a")), expected);
}

TEST_F(ImageCommitTest, UnflushedFirstWriteIsBaseContentAfterACrash) {
  { write(*use("a"), 5000, pattern(7, 10'000)); }
  reopen_after_crash();
  EXPECT_EQ(content(*use("a")), base_content_);
}

TEST_F(ImageCommitTest, CloseMakesEverythingDurable) {
  {
    const auto image = use("a");
    write(*image, 5000, pattern(7, 10'000));
    image->set_times(1, 2, 3);
  }
  reopen();
  const auto image = use("a");
  EXPECT_EQ(content(*image), over_base(5000, pattern(7, 10'000)));
  EXPECT_EQ(image->attributes().mtime_ns, 2);
}

TEST_F(ImageCommitTest, OverwritesInPlaceAreSyncedBeforeTheFileIsClosed) {
  {
    const auto image = use("a");
    write(*image, 0, filled(4096, 1));
    image->flush();
    write(*image, 0, filled(4096, 2));
  }
  int syncs = 0;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    if (path.ends_with(".cow") && operation == FileOperation::sync) ++syncs;
    return 0;
  });
  store_->find("a")->retire_if_idle();
  EXPECT_TRUE(store_->close());
  EXPECT_EQ(syncs, 1);
}

TEST_F(ImageCommitTest, FirstFlushAfterAKillSyncsWhatIsThere) {
  {
    const auto image = use("a");
    write(*image, 0, filled(4096, 1));
    image->flush();
    write(*image, 0, filled(4096, 2));
  }
  reopen_after_crash();
  int syncs = 0;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    if (path.ends_with(".cow") && operation == FileOperation::sync) ++syncs;
    return 0;
  });
  const auto image = store_->find("a")->use();
  ASSERT_EQ(content(*image, 0, 4096), filled(4096, 2));
  image->flush();
  EXPECT_EQ(syncs, 1);
  image->flush();
  EXPECT_EQ(syncs, 1);
}

TEST_F(ImageCommitTest, FlushWithoutChangesDoesNotSyncOrCommit) {
  const auto image = use("a");
  write(*image, 0, filled(4096, 1));
  image->flush();
  faults_.set([](const std::string&, FileOperation operation, uint64_t, uint64_t) {
    return operation == FileOperation::sync ? EIO : 0;
  });
  run_sql(catalog_path(),
          "CREATE TRIGGER t BEFORE UPDATE ON image BEGIN SELECT RAISE(ABORT, 'x'); END");
  image->set_times(5, 6, 7);  // goes with the next commit that there is
  EXPECT_NO_THROW(image->flush());
}

TEST_F(ImageCommitTest, BackgroundCommitComesWithinFiveSeconds) {
  {
    const auto image = use("a");
    write(*image, 0, filled(4096, 9));
    const auto start = std::chrono::steady_clock::now();
    while (map_on_disk(catalog_path(), image->layer_id(), 1) != "p") {
      ASSERT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
      ::usleep(50'000);
    }
  }
  reopen_after_crash();
  EXPECT_EQ(content(*use("a"), 0, 4096), filled(4096, 9));
}

// ---- size --------------------------------------------------------------------------------------

TEST_F(ImageCommitTest, SizesAreDurableWhenResizeReturns) {
  for (const uint64_t size : {5000ULL, 100'000ULL, 50ULL}) {
    use("a")->resize(size);
    reopen_after_crash();
    EXPECT_EQ(store_->find("a")->size(), size);
  }
}

TEST_F(ImageCommitTest, ResizeToASizeThatAWriteMadeIsDurableToo) {
  {
    const auto image = use("a");
    write(*image, 60'000, filled(10, 1));
    image->resize(60'010);
  }
  reopen_after_crash();
  const auto image = use("a");
  EXPECT_EQ(image->size(), 60'010U);
  EXPECT_EQ(content(*image, 60'000, 10), filled(10, 1));
}

TEST_F(ImageCommitTest, ExtendIsDurableAfterAFlush) {
  {
    const auto image = use("a");
    image->extend(90'000);
    image->extend(80'000);
    EXPECT_EQ(image->size(), 90'000U);
    image->flush();
  }
  reopen_after_crash();
  EXPECT_EQ(store_->find("a")->size(), 90'000U);
}

TEST_F(ImageCommitTest, GrowthAloneOutlivesAnImageThatWasClosed) {
  const uint64_t size = base_content_.size() + 12345;
  { use("a")->extend(size); }
  EXPECT_TRUE(store_->find("a")->dirty());
  store_->find("a")->retire_if_idle();
  reopen();
  EXPECT_EQ(store_->find("a")->size(), size);
}

TEST_F(ImageCommitTest, CrashBetweenShrinkAndItsZeroingShowsNoOldData) {
  faults_.set([](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    return path.ends_with(".cow") && operation == FileOperation::write ? EIO : 0;
  });
  faults_.clear();
  {
    const auto image = use("a");
    write(*image, 0, filled(8192, 0x55));
    image->flush();
    faults_.set([](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
      return path.ends_with(".cow") && operation == FileOperation::write ? EIO : 0;
    });
    image->resize(1000);
    EXPECT_THROW(image->resize(5000), Error);  // it would show what could not be zeroed
    faults_.clear();
  }
  reopen_after_crash();
  const auto image = use("a");
  EXPECT_EQ(image->size(), 1000U);
  write(*image, 3000, filled(1, 1));
  Bytes expected = filled(3001, 0);
  std::fill_n(expected.begin(), 1000, std::byte{0x55});
  expected[3000] = std::byte{1};
  EXPECT_EQ(content(*image), expected);
}

// ---- attributes --------------------------------------------------------------------------------

TEST_F(ImageCommitTest, TimesGoWithTheNextCommit) {
  {
    const auto image = use("a");
    image->set_times(5, 6, std::nullopt);
    write(*image, 0, filled(1, 1));
    image->flush();
  }
  reopen_after_crash();
  EXPECT_EQ(store_->find("a")->attributes().atime_ns, 5);
  EXPECT_EQ(store_->find("a")->attributes().mtime_ns, 6);
}

TEST_F(ImageCommitTest, TimesAloneAreWrittenByFlushAll) {
  {
    const auto image = use("a");
    image->set_times(5, 6, 7);
    EXPECT_TRUE(image->dirty());
    image->flush_all();
    EXPECT_FALSE(image->dirty());
  }
  reopen_after_crash();
  EXPECT_EQ(store_->find("a")->attributes().ctime_ns, 7);
}

TEST_F(ImageCommitTest, TimesOfImagesInNoUseAreWrittenWhenTheStoreIsClosed) {
  for (const int64_t time : {1, 2, 3}) {
    const auto image = use("a" + std::to_string(time));
    image->set_times(time, 10 * time, 100 * time);
  }
  EXPECT_TRUE(store_->close());
  reopen_after_crash();
  for (const int64_t time : {1, 2, 3}) {
    const Attributes attributes = store_->find("a" + std::to_string(time))->attributes();
    EXPECT_EQ(attributes.atime_ns, time);
    EXPECT_EQ(attributes.mtime_ns, 10 * time);
    EXPECT_EQ(attributes.ctime_ns, 100 * time);
  }
}

TEST_F(ImageCommitTest, OwnerAndModeAreDurableAtOnceAndSpecialBitsDropped) {
  store_->create({.name = "a", .empty = false, .size = std::nullopt})
      ->set_owner_and_mode(1000, 1001, 07755, 99);
  reopen_after_crash();
  const Attributes attributes = store_->find("a")->attributes();
  EXPECT_EQ(attributes.uid, 1000U);
  EXPECT_EQ(attributes.gid, 1001U);
  EXPECT_EQ(attributes.mode, 0755U);
  EXPECT_EQ(attributes.ctime_ns, 99);
}

}  // namespace
}  // namespace cowfs::test
