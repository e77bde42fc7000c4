// dm-cow's promise: requests that arrive while a chunk is being copied up wait for that chunk only.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <mutex>
#include <thread>

#include "store/image.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

constexpr uint64_t kBig = 65536;
constexpr uint64_t kBaseChunks = 16;

class CopyUpTest : public StoreFixture {
 protected:
  CopyUpTest() {
    chunk_size_ = kBig;
    make_base(pattern(1, kBaseChunks * kBig));
    open();
  }
  [[nodiscard]] bool reads_base_chunk(const std::string& path, FileOperation operation,
                                      uint64_t offset, uint64_t chunk) const {
    return path == base_path() && operation == FileOperation::read && offset / kBig == chunk;
  }
  Bytes base_part(uint64_t offset, size_t length) const {
    const auto begin = base_content_.begin() + static_cast<int64_t>(offset);
    return {begin, begin + static_cast<int64_t>(length)};
  }
};

TEST_F(CopyUpTest, OnlyTheChunkInCopyUpWaits) {
  const auto image = use("a");
  const auto other = use("b");
  write(*image, 5 * kBig, filled(100, 5));

  std::promise<void> begun;
  std::atomic<bool> first = true;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t offset, uint64_t) {
    if (reads_base_chunk(path, operation, offset, 3) && first.exchange(false)) {
      begun.set_value();
      std::this_thread::sleep_for(std::chrono::seconds(2));
    }
    return 0;
  });
  std::atomic<bool> copied_up = false;
  std::thread slow([&] {
    write(*image, 3 * kBig + 1000, filled(10, 1));
    copied_up = true;
  });
  begun.get_future().wait();

  // A second write to the chunk is told what to wait for, and waits if it is to.
  const auto blocked = image->try_write(filled(10, 2), 3 * kBig + 2000);
  ASSERT_TRUE(blocked);
  EXPECT_EQ(blocked->range.first, 3U);
  EXPECT_EQ(blocked->range.last, 4U);
  EXPECT_EQ(blocked->written, 0U);
  std::atomic<bool> called = false;
  image->when_free(blocked->range, [&] { called = true; });
  std::atomic<bool> waited = false;
  std::thread second([&] {
    write(*image, 3 * kBig + 3000, filled(10, 3));
    waited = true;
  });

  // Everything else is done before the slow one.
  EXPECT_EQ(content(*image, 2 * kBig, 100), base_part(2 * kBig, 100));
  EXPECT_EQ(content(*image, 5 * kBig, 100), filled(100, 5));
  write(*image, 4 * kBig + 17, filled(10, 4));  // copy-up of a neighbour
  write(*image, 5 * kBig + 17, filled(10, 4));  // in place
  write(*image, 2 * kBig, filled(kBig, 4));     // a whole chunk
  image->make_zero(6 * kBig, kBig);
  image->flush();
  write(*other, 3 * kBig + 5, filled(10, 6));  // the same chunk of another image
  EXPECT_EQ(content(*other, 3 * kBig + 5, 10), filled(10, 6));
  static_cast<void>(store_->create({.name = "c", .empty = false, .size = std::nullopt}));
  EXPECT_FALSE(copied_up);
  EXPECT_FALSE(called);
  EXPECT_FALSE(waited);

  slow.join();
  second.join();
  EXPECT_TRUE(called);
  Bytes expected = base_part(3 * kBig, kBig);
  std::fill_n(expected.begin() + 1000, 10, std::byte{1});
  std::fill_n(expected.begin() + 3000, 10, std::byte{3});
  EXPECT_EQ(content(*image, 3 * kBig, kBig), expected);
  EXPECT_FALSE(image->try_write(filled(10, 2), 3 * kBig + 2000));
  std::fill_n(expected.begin() + 2000, 10, std::byte{2});
  EXPECT_EQ(content(*image, 3 * kBig, kBig), expected);
}

TEST_F(CopyUpTest, TrimOfTheChunkWaitsForItsCopyUp) {
  const auto image = use("a");
  std::promise<void> begun;
  std::promise<void> go;
  std::atomic<bool> first = true;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t offset, uint64_t) {
    if (reads_base_chunk(path, operation, offset, 3) && first.exchange(false)) {
      begun.set_value();
      go.get_future().wait();
    }
    return 0;
  });
  std::thread slow([&] { write(*image, 3 * kBig + 1000, filled(10, 1)); });
  begun.get_future().wait();
  auto trim = std::async(std::launch::async, [&] { image->make_zero(3 * kBig, kBig); });
  EXPECT_EQ(trim.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  go.set_value();
  slow.join();
  trim.get();
  EXPECT_EQ(content(*image, 3 * kBig, kBig), filled(kBig, 0));
}

TEST_F(CopyUpTest, FailedCopyUpLetsTheNextOneTry) {
  const auto image = use("a");
  std::promise<void> begun;
  std::promise<void> go;
  std::atomic<bool> first = true;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t offset, uint64_t) {
    if (!reads_base_chunk(path, operation, offset, 3) || !first.exchange(false)) return 0;
    begun.set_value();
    go.get_future().wait();
    return EIO;
  });
  std::thread slow([&] { EXPECT_THROW(write(*image, 3 * kBig + 1000, filled(10, 1)), Error); });
  begun.get_future().wait();
  std::thread second([&] { write(*image, 3 * kBig + 2000, filled(10, 2)); });
  go.set_value();
  slow.join();
  second.join();
  Bytes expected = base_part(3 * kBig, kBig);
  std::fill_n(expected.begin() + 2000, 10, std::byte{2});
  EXPECT_EQ(content(*image, 3 * kBig, kBig), expected);
}

TEST_F(CopyUpTest, ManyRoundsOfWritersThatMeetInOneChunk) {
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t offset, uint64_t) {
    if (reads_base_chunk(path, operation, offset, offset / kBig)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return 0;
  });
  for (int round = 0; round < 40; ++round) {
    const std::string name = "r" + std::to_string(round);
    const auto image = use(name);
    std::vector<std::thread> threads;
    for (uint64_t id = 0; id < 4; ++id) {
      threads.emplace_back([&, id] {
        for (uint64_t chunk = 0; chunk < 4; ++chunk) {
          const uint64_t at = chunk * kBig + id * 16000 + 7;
          write(*image, at, filled(5000, static_cast<int>(id + 1)));
          EXPECT_EQ(content(*image, at, 5000), filled(5000, static_cast<int>(id + 1)));
          if (id == 0) image->flush();
        }
      });
    }
    // Readers of neighbours, of which one is never written.
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        EXPECT_EQ(content(*image, 9 * kBig, 3000), base_part(9 * kBig, 3000));
        EXPECT_EQ(content(*image, 3 * kBig + 60'000, 3000), base_part(3 * kBig + 60'000, 3000));
      }
    });
    for (std::thread& thread : threads) thread.join();
    Bytes expected = base_content_;
    for (uint64_t chunk = 0; chunk < 4; ++chunk) {
      for (uint64_t id = 0; id < 4; ++id) {
        std::fill_n(expected.begin() + static_cast<int64_t>(chunk * kBig + id * 16000 + 7), 5000,
                    static_cast<std::byte>(id + 1));
      }
    }
    ASSERT_TRUE(content(*image) == expected) << round;
  }
}

}  // namespace
}  // namespace cowfs::test
