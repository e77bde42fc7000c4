// Several threads on one image: each owns byte ranges that share chunks with those of the others,
// and sees there what it wrote last, whatever the others, flushes, trims and the background do.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "store/image.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

constexpr size_t kThreads = 4;

std::chrono::milliseconds duration() {
  const char* text = std::getenv("COWFS_MODEL_SECONDS");
  return text != nullptr ? std::chrono::seconds(std::atoi(text)) : std::chrono::milliseconds(2500);
}

class ThreadsTest : public StoreFixture, public ::testing::WithParamInterface<uint32_t> {
 protected:
  ThreadsTest() {
    chunk_size_ = GetParam();
    pool_size_ = 1 << 30;  // writers may be far ahead of the flush that gives space back
    make_base(pattern(seed_, 40 * size_t{GetParam()} + 333));
    open();
  }
  const uint64_t seed_ = random_seed();
};

/// A thread's part of an image: stripes of `stripe` bytes, every kThreads-th one.
class Owner {
 public:
  Owner(Image& image, const Bytes& content, size_t id, size_t stripe, uint64_t seed)
      : image_(image), bytes_(content), id_(id), stripe_(stripe), random_(seed + id) {}

  void step() {
    const size_t stripes = bytes_.size() / stripe_;
    const size_t mine = (random_() % (stripes / kThreads)) * kThreads + id_;
    const size_t offset = mine * stripe_ + random_() % stripe_;
    const size_t length = 1 + random_() % (stripe_ - offset % stripe_);
    const auto begin = bytes_.begin() + static_cast<int64_t>(offset);
    switch (random_() % 8) {
      case 0:
      case 1:
      case 2: {
        const Bytes data = pattern(random_(), length);
        std::copy(data.begin(), data.end(), begin);
        if (random_() % 2 == 0) {
          write(image_, offset, data);
        } else {
          std::span<const std::byte> rest = data;
          size_t at = offset;
          while (const auto blocked = image_.try_write(rest, at)) {
            rest = rest.subspan(blocked->written);
            at += blocked->written;
            std::atomic<bool> free = false;
            image_.when_free(blocked->range, [&] { free = true; });
            while (!free) std::this_thread::yield();
          }
        }
        break;
      }
      case 3:
        std::fill_n(begin, length, std::byte{0});
        image_.make_zero(offset, length);
        break;
      case 4:
        if (random_() % 10 == 0) image_.flush();
        break;
      default: {
        const Bytes found = content(image_, offset, length);
        EXPECT_TRUE(std::equal(found.begin(), found.end(), begin))
            << "thread " << id_ << " at " << offset << " of " << length;
        EXPECT_EQ(found.size(), length);
      }
    }
  }
  /// Lays this thread's stripes over `all`.
  void collect(Bytes& all) const {
    for (size_t at = id_ * stripe_; at < bytes_.size(); at += kThreads * stripe_) {
      const size_t end = std::min(at + stripe_, bytes_.size());
      std::copy(bytes_.begin() + static_cast<int64_t>(at),
                bytes_.begin() + static_cast<int64_t>(end), all.begin() + static_cast<int64_t>(at));
    }
  }

 private:
  Image& image_;
  Bytes bytes_;
  size_t id_;
  size_t stripe_;
  std::mt19937_64 random_;
};

TEST_P(ThreadsTest, EachSeesItsOwnWritesInSharedChunks) {
  // Stripes of less than a chunk, and of some chunks, so that whole ones are trimmed.
  for (const size_t stripe : {size_t{GetParam()} / 3, size_t{GetParam()} * 2 + 100}) {
    const std::string name = "s" + std::to_string(stripe);
    Bytes expected = base_content_;
    {
      const auto image = use(name);
      std::vector<Owner> owners;
      for (size_t id = 0; id < kThreads; ++id) {
        owners.emplace_back(*image, base_content_, id, stripe, seed_);
      }
      std::atomic<bool> stop = false;
      std::vector<std::thread> threads;
      for (Owner& owner : owners) {
        threads.emplace_back([&] {
          while (!stop && !HasFailure()) owner.step();
        });
      }
      threads.emplace_back([&] {
        while (!stop) {
          image->flush_all();
          static_cast<void>(image->next_hole(0));
          static_cast<void>(image->own_bytes());
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      });
      std::this_thread::sleep_for(duration() / 2);
      stop = true;
      for (std::thread& thread : threads) thread.join();
      for (const Owner& owner : owners) owner.collect(expected);
      EXPECT_TRUE(content(*image) == expected);
      image->flush();
    }
    ASSERT_FALSE(HasFailure()) << "COWFS_SEED=" << seed_;
    reopen_after_crash();
    EXPECT_TRUE(content(*use(name)) == expected) << "COWFS_SEED=" << seed_;
  }
}

TEST_P(ThreadsTest, WritesTrimsSharingAndPunchingOfTheSameChunks) {
  // Odd chunks are trimmed, even ones never: readers see zeros in those only.
  const size_t chunk = GetParam();
  constexpr size_t kChunks = 8;
  const auto source = use("source");
  const auto image = use("target");
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (size_t id = 0; id < 2; ++id) {
    threads.emplace_back([&, id] {
      std::mt19937_64 random(seed_ + id);
      while (!stop) {
        const size_t index = (random() % (kChunks / 2)) * 2 + id;  // one writer a chunk
        switch (random() % 3) {
          case 0:
            write(*image, index * chunk, filled(chunk, 1 + static_cast<int>(random() % 200)));
            break;
          case 1:
            image->copy_from(*source, index * chunk, index * chunk, chunk);
            break;
          default:
            if (index % 2 == 1) image->make_zero(index * chunk, chunk);
        }
      }
    });
  }
  threads.emplace_back([&] {
    while (!stop) image->flush();
  });
  threads.emplace_back([&] {
    std::mt19937_64 random(seed_ + 7);
    while (!stop && !HasFailure()) {
      const size_t index = random() % kChunks;
      const size_t at = random() % (chunk / 512) * 512;
      const Bytes found = content(*image, index * chunk + at, 512);
      // A write under way may be seen in part; zeros only where somebody writes some.
      const auto zeros = std::search_n(found.begin(), found.end(), 16, std::byte{0});
      EXPECT_TRUE(zeros == found.end() || index % 2 == 1) << "chunk " << index << " at " << at;
    }
  });
  std::this_thread::sleep_for(duration() / 2);
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(HasFailure()) << "COWFS_SEED=" << seed_;
}

TEST_P(ThreadsTest, WritersGrowAnImageTogether) {
  const size_t piece = GetParam() / 2 + 11;
  Bytes expected;
  {
    const auto image = use("grown", true);
    std::atomic<size_t> next = 0;
    std::vector<std::thread> threads;
    for (size_t id = 0; id < kThreads; ++id) {
      threads.emplace_back([&] {
        for (size_t index = next++; index < 60; index = next++) {
          write(*image, index * piece, pattern(index, piece));
          if (index % 10 == 0) image->flush();
          EXPECT_EQ(content(*image, index * piece, piece), pattern(index, piece));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t index = 0; index < 60; ++index) {
      const Bytes data = pattern(index, piece);
      expected.insert(expected.end(), data.begin(), data.end());
    }
    EXPECT_TRUE(content(*image) == expected);
    image->flush();
  }
  reopen_after_crash();
  EXPECT_TRUE(content(*use("grown")) == expected);
}

TEST_P(ThreadsTest, ImagesAreUsedLeftAndClosed) {
  for (int i = 0; i < 3; ++i) use("u" + std::to_string(i));
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (size_t id = 0; id < 3; ++id) {
    threads.emplace_back([&, id] {
      const std::string name = "u" + std::to_string(id);
      for (int round = 1; !stop && !HasFailure(); ++round) {
        const auto image = store_->find(name)->use();
        const auto value = static_cast<int>(round % 250 + 1);
        if (round > 1) {
          EXPECT_EQ(content(*image, 100, 10), filled(10, (round - 1) % 250 + 1));
        }
        write(*image, 100, filled(10, value));
      }
    });
  }
  threads.emplace_back([&] {
    while (!stop) {
      for (const Store::Entry& entry : store_->list(0, 10)) entry.image->retire_if_idle();
    }
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(ChunkSizes, ThreadsTest, ::testing::Values(4096, 65536));

}  // namespace
}  // namespace cowfs::test
