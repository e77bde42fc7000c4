#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <future>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "store/image.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

/// Writes of what the base holds, as cp(1) makes them that reads and writes.
class ImageShareTest : public StoreFixture {
 protected:
  static constexpr size_t kBaseSize = 16 * kChunk + 1000;

  ImageShareTest() {
    make_base(pattern(1, kBaseSize));
    open();
  }
  [[nodiscard]] Bytes base_part(size_t offset, size_t length) const {
    const auto first = base_content_.begin() + static_cast<ptrdiff_t>(offset);
    return {first, first + static_cast<ptrdiff_t>(length)};
  }
};

TEST_F(ImageShareTest, EmptyImageThatIsFilledWithTheBaseCostsNothing) {
  {
    const auto image = use("a", true);
    for (size_t at = 0; at < kBaseSize; at += 3 * 4096) {
      write(*image, at, base_part(at, std::min<size_t>(3 * 4096, kBaseSize - at)));
    }
    EXPECT_EQ(content(*image), base_content_);
    EXPECT_EQ(map(image), std::string(18, '.'));
    EXPECT_EQ(image->own_bytes(), 0U);
  }
  reopen();
  EXPECT_EQ(content(*use("a")), base_content_);
}

TEST_F(ImageShareTest, OnlyChunksThatDifferAreWritten) {
  const auto image = use("a", true);
  Bytes bytes = base_content_;
  bytes[5 * 4096 + 7] ^= std::byte{1};
  bytes[6 * 4096] ^= std::byte{1};
  write(*image, 0, bytes);
  EXPECT_EQ(content(*image), bytes);
  EXPECT_EQ(map(image), ".....pp...........");
}

TEST_F(ImageShareTest, WhatWasSkippedBelowASharedChunkReadsAsZeros) {
  {
    const auto image = use("a", true);
    write(*image, 8 * 4096, base_part(8 * 4096, 4096));
    write(*image, 2 * 4096, base_part(2 * 4096, 4096));
    EXPECT_EQ(map(image), "zz.zzzzz..........");
  }
  reopen();
  const auto image = use("a");
  EXPECT_EQ(content(*image, 0, 2 * 4096), filled(2 * 4096, 0));
  EXPECT_EQ(content(*image, 2 * 4096, 4096), base_part(2 * 4096, 4096));
  EXPECT_EQ(content(*image, 3 * 4096, 5 * 4096), filled(5 * 4096, 0));
  EXPECT_EQ(content(*image, 8 * 4096, 4096), base_part(8 * 4096, 4096));
}

TEST_F(ImageShareTest, GrowthBehindTheLastSharedPartReadsAsZeros) {
  const auto image = use("a", true);
  write(*image, 0, base_content_);
  image->resize(kBaseSize + 8192);
  EXPECT_EQ(content(*image, kBaseSize, 8192), filled(8192, 0));
}

TEST_F(ImageShareTest, PartOfAChunkIsWritten) {
  const auto image = use("a", true);
  write(*image, 4096, base_part(4096, 1000));
  EXPECT_EQ(map(image), ".p................");
  EXPECT_EQ(content(*image, 4096, 1000), base_part(4096, 1000));
}

TEST_F(ImageShareTest, ATrimmedChunkThatIsWrittenAsItWasIsSharedAgain) {
  const auto image = use("a");
  image->make_zero(4 * 4096, 3 * 4096);
  write(*image, 5 * 4096, base_part(5 * 4096, 4096));
  EXPECT_EQ(map(image), "....z.z...........");
  EXPECT_EQ(content(*image, 5 * 4096, 4096), base_part(5 * 4096, 4096));
}

TEST_F(ImageShareTest, AfterAShrinkNothingOfTheBaseComesBackByItself) {
  const auto image = use("a");
  image->resize(5000);
  write(*image, 3 * 4096, base_part(3 * 4096, 4096));
  EXPECT_EQ(content(*image, 0, 5000), base_part(0, 5000));
  EXPECT_EQ(content(*image, 5000, 3 * 4096 - 5000), filled(3 * 4096 - 5000, 0));
  EXPECT_EQ(content(*image, 3 * 4096, 4096), base_part(3 * 4096, 4096));
}

TEST_F(ImageShareTest, WritesThatComeTogetherAreAllShared) {
  // As the kernel's writeback hands a copy on: several requests at once, each of which raises the
  // limit up to which the base shows.
  make_base(pattern(2, size_t{8} << 20));
  store_.reset();
  std::filesystem::remove_all(store_path());
  open();
  for (int round = 0; round < 5; ++round) {
    const auto image = use("a" + std::to_string(round), true);
    constexpr size_t kPiece = 128 << 10;
    std::vector<std::thread> threads;
    for (size_t first = 0; first < 4; ++first) {
      threads.emplace_back([&, first] {
        for (size_t at = first * kPiece; at < base_content_.size(); at += 4 * kPiece) {
          write(*image, at, base_part(at, kPiece));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    image->flush();
    EXPECT_EQ(image->own_bytes(), 0U);
    EXPECT_TRUE(content(*image) == base_content_);
  }
}

TEST_F(ImageShareTest, SharingBelowTheLimitDoesNotTakeBackWhatOthersRaised) {
  // Chunk by chunk, from several threads at once and in any order: some raise the limit while
  // others share what lies below it.
  make_base(pattern(3, size_t{2} << 20));
  store_.reset();
  std::filesystem::remove_all(store_path());
  open();
  const size_t chunks = base_content_.size() / kChunk;
  for (unsigned round = 0; round < 20; ++round) {
    const auto image = use("a" + std::to_string(round), true);
    std::vector<std::thread> threads;
    for (unsigned first = 0; first < 4; ++first) {
      threads.emplace_back([&, first] {
        std::minstd_rand random(round * 4 + first + 1);
        std::vector<size_t> order;
        for (size_t chunk = first; chunk < chunks; chunk += 4) order.push_back(chunk);
        // Upwards on the whole, so that the limit rises again and again.
        for (size_t i = 0; i + 8 <= order.size(); i += 4) {
          std::shuffle(order.begin() + static_cast<ptrdiff_t>(i),
                       order.begin() + static_cast<ptrdiff_t>(i) + 8, random);
        }
        for (const size_t chunk : order) {
          write(*image, chunk * kChunk, base_part(chunk * kChunk, kChunk));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_TRUE(content(*image) == base_content_) << round;
    EXPECT_EQ(map(image, chunks), std::string(chunks, '.')) << round;
  }
}

TEST_F(ImageShareTest, WhatWasSharedBeforeAWriteHadToWaitStaysShared) {
  // Chunk 1 is zero, chunk 2 behind the limit, so that they are taken one by one. Chunk 2 is being
  // written by somebody else.
  const auto image = use("a", true);
  write(*image, 4096, base_part(4096, 4096));
  image->make_zero(4096, 4096);
  std::promise<void> begun;
  std::promise<void> go;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    if (path.ends_with(".cow") && operation == FileOperation::write) {
      begun.set_value();
      go.get_future().wait();
    }
    return 0;
  });
  std::thread other([&] { write(*image, 2 * 4096, filled(100, 1)); });
  begun.get_future().wait();
  const Bytes bytes = base_part(4096, 2 * 4096);
  const auto blocked = image->try_write(bytes, 4096);
  faults_.clear();
  go.set_value();
  other.join();
  ASSERT_TRUE(blocked);
  EXPECT_EQ(blocked->written, 4096U);
  EXPECT_EQ(blocked->range.first, 2U);
  write(*image, 2 * 4096, base_part(2 * 4096, 4096));
  EXPECT_EQ(map(image, 4), "z.p.");
  EXPECT_EQ(content(*image, 4096, 2 * 4096), bytes);
}

TEST_F(ImageShareTest, AWriteOverTheLimitSharesWhatLiesBehindIt) {
  const auto image = use("a", true);
  write(*image, 0, base_part(0, 2 * 4096));
  write(*image, 4096, base_part(4096, 3 * 4096));
  EXPECT_EQ(map(image, 5), ".p...");
  EXPECT_EQ(content(*image), base_part(0, 4 * 4096));
}

// ---- what is not in the page cache -------------------------------------------------------------

TEST_F(ImageShareTest, WhatOfTheBaseIsNotCachedIsFetchedForComparing) {
  faults_.set([](const std::string&, FileOperation operation, uint64_t, uint64_t) {
    return operation == FileOperation::read_cached ? EAGAIN : 0;
  });
  const auto image = use("a", true);
  write(*image, 0, base_content_);
  image->flush();
  EXPECT_EQ(image->own_bytes(), 0U);
}

TEST_F(ImageShareTest, ABaseThatCannotBeReadForComparingFailsNoWrite) {
  faults_.set([](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    const bool read = operation == FileOperation::read || operation == FileOperation::read_cached;
    return read && path.ends_with("base.img") ? EIO : 0;
  });
  const auto image = use("a", true);
  write(*image, 0, base_content_);
  image->flush();
  EXPECT_GT(image->own_bytes(), 0U);
  EXPECT_EQ(content(*image), base_content_);
}

TEST_F(ImageShareTest, WhoWritesOtherDataSoonFetchesNothingMore) {
  std::atomic<uint64_t> fetched = 0;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t length) {
    if (operation == FileOperation::read_cached) return EAGAIN;
    if (operation == FileOperation::read && path.ends_with("base.img")) fetched += length;
    return 0;
  });
  const auto image = use("a");
  const Bytes other = pattern(99, 16 * 4096);
  for (int round = 0; round < 400; ++round) {
    image->make_zero(0, 16 * 4096);
    write(*image, 0, other);
  }
  EXPECT_GT(fetched, 0U);
  EXPECT_LE(fetched, uint64_t{17} << 20) << "of " << 400 * 16 * 4096;
}

// ---- the size and what lies behind it ----------------------------------------------------------

TEST_F(ImageShareTest, AWriteThatFailsHalfWayDoesNotComeToLightByAGrowth) {
  const auto image = use("a", true);
  faults_.set([](const std::string& path, FileOperation operation, uint64_t offset, uint64_t) {
    return operation == FileOperation::write && path.ends_with(".cow") && offset >= 4096 ? ENOSPC
                                                                                         : 0;
  });
  write(*image, 0, filled(100, 9));  // makes chunk 0 present, so that the next takes two steps
  EXPECT_EQ(error_of([&] { write(*image, 0, filled(8192, 7)); }).code(), ENOSPC);
  faults_.clear();
  const uint64_t size = image->size();
  EXPECT_GE(size, 100U);
  EXPECT_LE(size, 4096U);
  image->resize(16384);
  EXPECT_EQ(content(*image, size, 16384 - size), filled(16384 - size, 0));
}

TEST_F(ImageShareTest, ACommitDoesNotSpeakOfChunksBehindTheSizeThatItCommits) {
  {
    const auto image = use("a", true);
    write(*image, 0, filled(4096, 1));
    image->flush();
    // The write below goes chunk by chunk: 2 is written, 3 is compared with the base and shared. A
    // commit comes in between, when chunk 2 is present and the size not raised yet.
    bool written = false;
    bool committed = false;
    faults_.set([&](const std::string& path, FileOperation operation, uint64_t offset, uint64_t) {
      if (path.ends_with(".cow") && operation == FileOperation::write) written = true;
      if (path == base_path() && offset == 3 * 4096 && written && !committed) {
        committed = true;
        image->flush();
      }
      return 0;
    });
    Bytes bytes = filled(4096, 2);
    const Bytes shared = base_part(3 * 4096, 4096);
    bytes.insert(bytes.end(), shared.begin(), shared.end());
    write(*image, 2 * 4096, bytes);
    faults_.clear();
    EXPECT_TRUE(committed);
    EXPECT_EQ(content(*image, 2 * 4096, 8192), bytes);
  }
  reopen_after_crash();
  const auto image = use("a");
  EXPECT_EQ(image->size(), 4096U);
  image->resize(8 * 4096);
  EXPECT_EQ(content(*image, 4096, 7 * 4096), filled(7 * 4096, 0));
}

TEST_F(ImageShareTest, SpaceThatWasReservedStaysAfterTheImageIsClosed) {
  {
    const auto image = use("a");
    image->reserve(0, 16 * 4096);
    EXPECT_GE(image->own_bytes(), 16 * 4096U);
  }
  store_->find("a")->retire_if_idle();
  EXPECT_FALSE(store_->find("a")->in_use_or_open());
  const auto image = use("a");
  write(*image, 0, filled(6, 1));
  EXPECT_GE(image->own_bytes(), 16 * 4096U);
}

}  // namespace
}  // namespace cowfs::test
