#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <optional>
#include <random>
#include <thread>

#include "store/image.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

class ImageCopyTest : public StoreFixture {
 protected:
  static constexpr size_t kBaseSize = 16 * kChunk + 1000;

  ImageCopyTest() {
    make_base(pattern(1, kBaseSize));
    open();
  }
  /// As `cp` does it: until the end.
  static void copy_all(Image& source, Image& target) {
    uint64_t at = 0;
    while (const uint64_t copied = target.copy_from(source, at, at, source.size() - at)) {
      at += copied;
    }
    EXPECT_EQ(at, source.size());
  }
};

TEST_F(ImageCopyTest, CopyOfAnUntouchedImageCostsNothing) {
  const auto source = use("a");
  const auto target = use("b", true);
  copy_all(*source, *target);
  EXPECT_EQ(content(*target), base_content_);
  EXPECT_EQ(map(target), std::string(18, '.'));
  EXPECT_EQ(target->own_bytes(), 0U);
}

TEST_F(ImageCopyTest, CopyCostsWhatTheSourceHasPrivate) {
  const auto source = use("a");
  write(*source, 3 * 4096 + 5, filled(10, 1));
  source->make_zero(6 * 4096, 2 * 4096);
  const auto target = use("b", true);
  copy_all(*source, *target);
  EXPECT_EQ(content(*target), content(*source));
  EXPECT_EQ(map(target), "...p..zz..........");
}

TEST_F(ImageCopyTest, CopyOntoAFullImageSharesAgainAndGivesSpaceBack) {
  const auto source = use("a");
  const auto target = use("b");
  write(*target, 0, pattern(2, 16 * 4096));
  target->flush();
  EXPECT_EQ(target->own_bytes(), 16U * 4096);
  copy_all(*source, *target);
  EXPECT_EQ(content(*target), base_content_);
  EXPECT_EQ(map(target), std::string(18, '.'));
  EXPECT_EQ(target->own_bytes(), 0U);
}

TEST_F(ImageCopyTest, CopyToAnotherPlaceCopiesData) {
  const auto source = use("a");
  const auto target = use("b", true);
  EXPECT_EQ(target->copy_from(*source, 0, 4096, 8192), 8192U);
  EXPECT_EQ(content(*target, 4096, 8192),
            Bytes(base_content_.begin(), base_content_.begin() + 8192));
  EXPECT_EQ(content(*target, 0, 4096), filled(4096, 0));
}

TEST_F(ImageCopyTest, OddOffsetsAreCopiedByteForByte) {
  const auto source = use("a");
  write(*source, 5000, pattern(3, 6000));
  for (const auto& [from, to, length] : std::vector<std::array<uint64_t, 3>>{
           {1, 1, 30'000}, {1, 4097, 30'000}, {100, 7, 50'000}, {4095, 0, 3}, {0, 0, 1}}) {
    const auto target = use("b" + std::to_string(from * 7 + to), true);
    const Bytes before = content(*source, from, length);
    for (uint64_t done = 0; done < length;) {
      const uint64_t copied = target->copy_from(*source, from + done, to + done, length - done);
      ASSERT_GT(copied, 0U);
      done += copied;
    }
    EXPECT_EQ(content(*target, to, length), before);
    EXPECT_EQ(content(*target, 0, to), filled(to, 0));
  }
}

TEST_F(ImageCopyTest, CopyStopsAtTheSourcesEnd) {
  const auto source = use("a");
  const auto target = use("b", true);
  EXPECT_EQ(target->copy_from(*source, kBaseSize, 0, 100), 0U);
  EXPECT_EQ(target->copy_from(*source, kBaseSize - 5, 0, 100), 5U);
  EXPECT_EQ(target->size(), 5U);
}

TEST_F(ImageCopyTest, CopyOfHolesTakesNoSpaceAndHidesWhatWasThere) {
  const auto source = use("a", true);
  source->resize(kBaseSize);
  const auto target = use("b");
  copy_all(*source, *target);
  EXPECT_EQ(content(*target), filled(kBaseSize, 0));
  target->flush();
  EXPECT_LE(target->own_bytes(), 4096U);
}

TEST_F(ImageCopyTest, SharingHighUpDoesNotShowTheBaseBelow) {
  Bytes expected(kBaseSize);
  std::copy_n(base_content_.begin() + 8 * 4096, 4096, expected.begin() + 8 * 4096);
  {
    const auto source = use("a");
    const auto target = use("b", true);
    target->resize(kBaseSize);
    EXPECT_EQ(target->copy_from(*source, 8 * 4096, 8 * 4096, 4096), 4096U);
    EXPECT_EQ(content(*target), expected);
    target->flush();
  }
  reopen_after_crash();
  EXPECT_EQ(content(*use("b")), expected);
}

TEST_F(ImageCopyTest, HalfShownChunkKeepsItsZeros) {
  // The target shows 5000 bytes of the base, then grows, then shares what lies higher.
  const auto source = use("a");
  const auto target = use("b");
  target->resize(5000);
  target->resize(kBaseSize);
  EXPECT_EQ(target->copy_from(*source, 8 * 4096, 8 * 4096, 4096), 4096U);
  Bytes expected(kBaseSize);
  std::copy_n(base_content_.begin(), 5000, expected.begin());
  std::copy_n(base_content_.begin() + 8 * 4096, 4096, expected.begin() + 8 * 4096);
  EXPECT_EQ(content(*target), expected);
}

TEST_F(ImageCopyTest, SourceThatShowsLessIsCopiedRight) {
  const auto source = use("a");
  source->resize(6 * 4096 + 10);
  source->resize(kBaseSize);
  const auto target = use("b");
  write(*target, 0, pattern(8, 5000));
  copy_all(*source, *target);
  EXPECT_EQ(content(*target), content(*source));
}

TEST_F(ImageCopyTest, PartOfALastChunkLeavesTheRestAlone) {
  // The source ends within a chunk that the target has for its own and goes on in.
  const auto source = use("a");
  const auto target = use("b");
  write(*target, 16 * 4096 + 500, pattern(5, 3000));
  const Bytes tail = content(*target, kBaseSize, 10'000);
  copy_all(*source, *target);
  EXPECT_EQ(content(*target, 0, kBaseSize), base_content_);
  EXPECT_EQ(content(*target, kBaseSize, 10'000), tail);
}

TEST_F(ImageCopyTest, CopyWithinOneImage) {
  const auto image = use("a");
  write(*image, 0, pattern(5, 8192));
  EXPECT_EQ(image->copy_from(*image, 0, 5 * 4096, 8192), 8192U);
  EXPECT_EQ(content(*image, 5 * 4096, 8192), pattern(5, 8192));
  EXPECT_EQ(content(*image, 0, 8192), pattern(5, 8192));
}

TEST_F(ImageCopyTest, AtMostOneGiBAtOnceAndThenOnAChunkBorder) {
  const auto source = use("a", true);
  source->resize(uint64_t{3} << 30);
  const auto target = use("b", true);
  const uint64_t copied = target->copy_from(*source, 100, 100, uint64_t{3} << 30);
  EXPECT_LE(copied, uint64_t{1} << 30);
  EXPECT_EQ((100 + copied) % 4096, 0U);
}

TEST_F(ImageCopyTest, RecopiedChunksAreNotPunchedByAnEarlierTrim) {
  // Trim, write again, let a commit copy "present" - and before it gives back what the trim freed,
  // share the chunk with the base. Its bytes are what the catalog speaks of: they have to stay.
  const auto source = use("a");
  auto target = std::make_optional(use("b"));
  const Bytes data = pattern(6, 4096);
  write(**target, 4096, data);
  (*target)->flush();
  (*target)->make_zero(4096, 4096);
  write(**target, 4096, data);
  std::atomic<bool> copied = false;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    if (path.ends_with(".cow") && operation == FileOperation::sync && !copied.exchange(true)) {
      EXPECT_EQ((*target)->copy_from(*source, 4096, 4096, 4096), 4096U);
    }
    return 0;
  });
  (*target)->flush();
  faults_.clear();
  EXPECT_TRUE(copied);
  ASSERT_EQ(map_on_disk(catalog_path(), (*target)->layer_id(), 3), ".p.");
  target.reset();
  reopen_after_crash();
  EXPECT_EQ(content(*use("b"), 4096, 4096), data);
}

TEST_F(ImageCopyTest, CommitInTheMiddleOfASharingHasAllOfItOrNothing) {
  // The last chunk was written and flushed; sharing it raises the limit and makes it absent. A
  // commit that had the one without the other would leave zeros that nobody wrote. Many changed map
  // pages, that of the last chunk behind the others, make the commit's copying take its time.
  constexpr uint64_t kPages = 512;
  constexpr uint64_t kPageBytes = kChunksPerPage * kChunk;
  constexpr uint64_t kLast = kPages * kPageBytes - kChunk;
  store_.reset();
  std::filesystem::remove_all(store_path());
  const Bytes shared = pattern(5, kChunk);
  File(base_path(), O_RDWR).write(shared, kLast);
  open();
  using Clock = std::chrono::steady_clock;
  Clock::duration took{};
  std::minstd_rand random(1);
  for (int round = 0; round < 25; ++round) {
    {
      const auto source = use("a");
      const auto target = use("b", true);
      for (uint64_t page = 0; page < kPages; ++page) {
        write(*target, page * kPageBytes, filled(kChunk, 1));
      }
      write(*target, kLast, filled(kChunk, 7));
      target->flush();
      for (uint64_t page = 0; page < kPages; ++page) target->make_zero(page * kPageBytes, kChunk);
      // Towards the end of the sharing, if it takes as long as the one before.
      const auto delay = took * (70 + random() % 30) / 100;
      std::atomic<bool> begun = false;
      std::thread flusher([&] {
        while (!begun) {
        }
        const auto until = Clock::now() + delay;
        while (Clock::now() < until) {
        }
        target->flush();
      });
      begun = true;
      const auto start = Clock::now();
      EXPECT_EQ(target->copy_from(*source, kLast, kLast, kChunk), kChunk);
      took = Clock::now() - start;
      flusher.join();
    }
    reopen_after_crash();
    const Bytes found = content(*use("b"), kLast, kChunk);
    EXPECT_TRUE(found == filled(kChunk, 7) || found == shared) << round;
    EXPECT_EQ(content(*use("b"), kLast - kChunk, kChunk), filled(kChunk, 0));
    store_->remove("b");
  }
}

TEST_F(ImageCopyTest, ReaderDuringSharingSeesOldOrNewAndNoZeros) {
  const auto source = use("a");
  const auto target = use("b");
  const Bytes mine = filled(4096, 9);
  const Bytes base(base_content_.begin() + 4096, base_content_.begin() + 8192);
  write(*target, 4096, mine);
  // The reader has found the chunk present; before it reads, the chunk is shared, committed and
  // punched.
  std::atomic<bool> done = false;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    if (path.ends_with(".cow") && operation == FileOperation::read && !done.exchange(true)) {
      EXPECT_EQ(target->copy_from(*source, 4096, 4096, 4096), 4096U);
      target->flush();
    }
    return 0;
  });
  const Bytes found = content(*target, 4096, 4096);
  EXPECT_TRUE(done);
  EXPECT_TRUE(found == mine || found == base);
}

}  // namespace
}  // namespace cowfs::test
