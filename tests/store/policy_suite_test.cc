// What every allocation policy has to keep, whatever it decides: written once and run for each that
// there is, and for the one that cowfs-policy(7) leads through. The model, threads and takeover
// tests and the crash explorer run for each as well; here is what needs to be looked at by itself.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <functional>
#include <future>
#include <thread>

#include "store/check.h"
#include "store/descriptor.h"
#include "store/live_memory.h"
#include "tests/store/policy_daily.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

std::span<const Policy> all_policies() {
  static const std::vector<Policy> all = [] {
    std::vector<Policy> list(policies().begin(), policies().end());
    list.push_back(kDailyPolicy);
    return list;
  }();
  return all;
}

std::vector<std::string> all_names() {
  std::vector<std::string> names;
  for (const Policy& policy : all_policies()) names.emplace_back(policy.name);
  return names;
}

class PolicySuite : public StoreFixture, public ::testing::WithParamInterface<std::string> {
 protected:
  static constexpr size_t kBase = 64 * kChunk;

  void SetUp() override {
    policy_ = GetParam();
    make_base(pattern(1, kBase));
    open_here();
  }
  Store& open_here() {
    store_.reset();
    Store::Options wanted = options();
    wanted.policies = all_policies();
    wanted.live = std::make_shared<LiveMemory>(memory_->fd());
    store_ = std::make_unique<Store>(wanted);
    return *store_;
  }
  /// As a power cut, but that no write is torn: memory is gone.
  Store& crash_and_open() {
    store_.reset();
    memory_ = new_memory();
    return open_here();
  }
  /// What a server does that is killed then; the next to open the store takes over.
  void as_server(const std::function<void()>& work) {
    store_.reset();
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      try {
        open_here();
        work();
      } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
      }
      std::fflush(nullptr);
      ::_exit(HasFailure() ? 1 : 0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  void expect_clean() {
    ASSERT_TRUE(store_->close());
    store_.reset();
    CheckOptions check;
    check.policies = all_policies();
    std::string found;
    check.receive = [&](const Finding& finding) {
      if (finding.severity != Finding::Severity::note) found += finding.what + "\n";
    };
    check_store(store_path(), check);
    EXPECT_EQ(found, "");
    if (policy_ == "qcow2" && has_qemu()) {
      for (const std::string& name : names_in(store_path() + "/layers")) {
        static_cast<void>(disk_for_qemu(store_path() + "/layers/" + name));
      }
    }
    crash_and_open();
  }

  static std::unique_ptr<Descriptor> new_memory() {
    return std::make_unique<Descriptor>(LiveMemory::make(), "memory");
  }
  std::unique_ptr<Descriptor> memory_ = new_memory();
};

TEST_P(PolicySuite, WhatIsFlushedSurvivesAndTheRestIsTheBase) {
  {
    const auto image = use("a");
    write(*image, 3 * kChunk + 100, pattern(2, 9000));
    image->flush();
    EXPECT_EQ(content(*image), over_base(3 * kChunk + 100, pattern(2, 9000)));
  }
  crash_and_open();
  EXPECT_EQ(content(*use("a")), over_base(3 * kChunk + 100, pattern(2, 9000)));
  expect_clean();
  EXPECT_EQ(content(*use("a")), over_base(3 * kChunk + 100, pattern(2, 9000)));
}

TEST_P(PolicySuite, WhatWasWrittenAndNotFlushedSurvivesTheServer) {
  as_server([this] {
    const auto image = use("a");
    write(*image, 0, pattern(2, 2 * kChunk));
    image->flush();
    write(*image, 7 * kChunk, pattern(3, 5 * kChunk));
    image->make_zero(0, kChunk);
  });
  Bytes wanted = over_base(7 * kChunk, pattern(3, 5 * kChunk));
  const Bytes first = pattern(2, 2 * kChunk);
  std::copy(first.begin(), first.end(), wanted.begin());
  std::fill_n(wanted.begin(), kChunk, std::byte{});
  for (int i = 0; i < 3; ++i) {
    as_server([&] {
      EXPECT_TRUE(content(*use("a")) == wanted);
      // What others write from here on goes elsewhere.
      write(*use("other" + std::to_string(i)), 0, pattern(50, kBase));
      EXPECT_TRUE(content(*use("a")) == wanted);
    });
  }
  open_here();
  EXPECT_TRUE(content(*use("a")) == wanted);
  EXPECT_TRUE(content(*use("other0")) == pattern(50, kBase));
  expect_clean();
  EXPECT_TRUE(content(*use("a")) == wanted);
}

TEST_P(PolicySuite, TrimmedReadsAsZerosAndGivesItsSpaceBack) {
  const auto image = use("a");
  write(*image, 0, pattern(2, 32 * kChunk));
  image->flush();
  const uint64_t full = image->own_bytes();
  EXPECT_GE(full, 32 * kChunk);
  image->make_zero(0, 24 * kChunk);
  image->flush();
  EXPECT_EQ(content(*image, 0, 24 * kChunk), filled(24 * kChunk, 0));
  EXPECT_LE(image->own_bytes(), full - 24 * kChunk);
}

TEST_P(PolicySuite, ARemovedImageGivesItsSpaceBack) {
  {
    const auto image = use("a");
    write(*image, 0, pattern(2, kBase));
    image->flush();
    write(*image, kBase, pattern(3, 4 * kChunk));  // not flushed
    image->make_zero(0, kChunk);                   // neither
  }
  store_->remove("a");
  EXPECT_EQ(store_->own_bytes(), 0U);
  expect_clean();
}

// I5: the catalog may show it until then.
TEST_P(PolicySuite, SpaceIsNotUsedAgainBeforeItsFreeingIsDurable) {
  const Bytes of_a = pattern(2, 16 * kChunk);
  {
    const auto a = use("a");
    write(*a, 0, of_a);
    a->flush();
    a->make_zero(0, 16 * kChunk);
    const auto b = use("b");
    write(*b, 0, pattern(3, kBase));
    b->flush();
  }
  crash_and_open();
  EXPECT_EQ(content(*use("a"), 0, of_a.size()), of_a);
  EXPECT_EQ(content(*use("b")), pattern(3, kBase));
  expect_clean();
}

TEST_P(PolicySuite, ImagesThatAreWrittenInTurnStayApart) {
  constexpr uint64_t kImages = 5;
  std::array<Bytes, kImages> wanted;
  wanted.fill(base_content_);
  const auto play = [&](uint64_t round, bool on_store) {
    for (uint64_t i = 0; i < kImages; ++i) {
      const uint64_t offset = (round * 7 + i) % 61 * kChunk + round % 3 * 512;
      const Bytes bytes = pattern(100 * round + i, kChunk + 700);
      const bool trims = round % 4 == 3;
      if (on_store) {
        const auto image = use(std::to_string(i));
        write(*image, offset, bytes);
        if (trims) image->make_zero(round * kChunk, kChunk);
        if (i == 2 && round % 5 == 0) image->flush();
      } else {
        std::copy(bytes.begin(), bytes.end(), wanted[i].begin() + static_cast<int64_t>(offset));
        if (trims) {
          std::fill_n(wanted[i].begin() + static_cast<int64_t>(round * kChunk), kChunk,
                      std::byte{});
        }
      }
    }
  };
  for (uint64_t first = 0; first < 24; first += 8) {
    as_server([&] {
      for (uint64_t round = first; round < first + 8; ++round) play(round, true);
    });
    for (uint64_t round = first; round < first + 8; ++round) play(round, false);
  }
  open_here();
  for (uint64_t i = 0; i < kImages; ++i) {
    EXPECT_TRUE(content(*use(std::to_string(i))) == wanted[i]) << i;
  }
  expect_clean();
  for (uint64_t i = 0; i < kImages; ++i) {
    EXPECT_TRUE(content(*use(std::to_string(i))) == wanted[i]) << i;
  }
}

TEST_P(PolicySuite, WhatAShrinkTookAwayDoesNotComeBack) {
  const auto image = use("a");
  write(*image, 0, pattern(2, kBase));
  image->flush();
  const uint64_t full = image->own_bytes();
  image->resize(10 * kChunk + 100);
  EXPECT_LT(image->own_bytes(), full);
  image->resize(kBase);
  Bytes wanted = pattern(2, kBase);
  std::fill(wanted.begin() + 10 * kChunk + 100, wanted.end(), std::byte{});
  EXPECT_EQ(content(*image), wanted);
}

// I12, of a size that no flush has seen before.
TEST_P(PolicySuite, AGrowthThatAShrinkCommitsShowsNothingOfTheBase) {
  {
    const auto image = use("a");
    image->resize(4 * kChunk + 100);
    image->extend(40 * kChunk);
    image->resize(20 * kChunk);
  }
  crash_and_open();
  Bytes wanted(base_content_.begin(), base_content_.begin() + 4 * kChunk + 100);
  wanted.resize(20 * kChunk);
  EXPECT_TRUE(content(*use("a")) == wanted);
  expect_clean();
  EXPECT_TRUE(content(*use("a")) == wanted);
}

TEST_P(PolicySuite, ATrimBehindTheEndKeepsNothingOpen) {
  {
    const auto image = use("a");
    image->resize(10 * kChunk);
    image->make_zero(8 * kChunk, 40 * kChunk);
    image->flush();
  }
  EXPECT_TRUE(store_->find("a")->retire_if_idle());
}

TEST_P(PolicySuite, AShrinkByTheServerThatTookOverFreesWhatWasNotFlushed) {
  as_server([this] {
    const auto image = use("a");
    write(*image, 0, pattern(2, kBase));
    image->flush();
    write(*image, 20 * kChunk, pattern(3, 4 * kChunk));
    write(*image, kBase, pattern(4, 4 * kChunk));
  });
  as_server([this] { use("a")->resize(12 * kChunk); });
  open_here();
  EXPECT_EQ(content(*use("a")), pattern(2, 12 * kChunk));
  expect_clean();
  // A file's tables are in it.
  const uint64_t tables = find_policy(policy_, all_policies()).map_in_file ? 5 : 0;
  EXPECT_LE(use("a")->own_bytes(), (12 + tables) * kChunk);
}

TEST_P(PolicySuite, ACopyIsAnImageOfItsOwn) {
  const auto image = use("a");
  write(*image, 0, pattern(2, 8 * kChunk));
  const auto copy = use("b", true);
  for (uint64_t done = 0; done < kBase;) done += copy->copy_from(*image, done, done, kBase - done);
  write(*image, 0, pattern(3, 8 * kChunk));
  EXPECT_EQ(content(*copy), over_base(0, pattern(2, 8 * kChunk)));
  copy->flush();
  image->flush();
  EXPECT_EQ(content(*copy), over_base(0, pattern(2, 8 * kChunk)));
}

// I8: the catalog does not speak of what may be lost.
TEST_P(PolicySuite, AFailedSyncFailsTheImageAndWhatWasFlushedStays) {
  const auto image = use("a");
  write(*image, 0, pattern(2, 4 * kChunk));
  image->flush();
  write(*image, 0, pattern(2, 4 * kChunk));
  write(*image, 8 * kChunk, pattern(3, 4 * kChunk));
  faults_.set([](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    return operation == FileOperation::sync && path.find("catalog") == std::string::npos ? EIO : 0;
  });
  EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
  faults_.clear();
  EXPECT_TRUE(image->failed());
  EXPECT_EQ(error_of([&] { write(*image, 0, pattern(4, 10)); }).code(), EIO);
  EXPECT_EQ(error_of([&] { image->flush(); }).code(), EIO);
  EXPECT_EQ(content(*image), over_base(0, pattern(2, 4 * kChunk)));
}

// Where the data of several images lies in one file the host says only once that it lost some.
TEST_P(PolicySuite, AFailedSyncIsNotTakenForDoneByAnotherImage) {
  const auto a = use("a");
  const auto b = use("b");
  for (const Image::Use* image : {&a, &b}) {
    write(**image, 0, pattern(2, kChunk));
    (*image)->flush();
    write(**image, 4 * kChunk, pattern(3, kChunk));
  }
  std::atomic<int> left = 1;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    const bool data = operation == FileOperation::sync && path.find("catalog") == std::string::npos;
    return data && left-- > 0 ? EIO : 0;
  });
  EXPECT_EQ(error_of([&] { a->flush(); }).code(), EIO);
  const bool shares_a_file = !a->cow_path().has_value();
  if (shares_a_file) {
    EXPECT_EQ(error_of([&] { b->flush(); }).code(), EIO);
  } else {
    b->flush();
  }
}

// A place that is looked up, given up, and given to another image must not be written to any more.
TEST_P(PolicySuite, WritesInPlaceNeverReachAnotherImage) {
  std::atomic<bool> stop = false;
  const auto a = use("a");
  const auto b = use("b");
  constexpr size_t kPart = 16 * kChunk;
  write(*a, 0, filled(kPart, 0xaa));
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      const Bytes bytes = filled(kChunk, 0xaa);
      for (uint64_t round = 0; !stop; ++round) a->write(bytes, round % 16 * kChunk);
    });
  }
  threads.emplace_back([&] {
    while (!stop) {
      a->make_zero(0, kPart);
      a->flush();
    }
  });
  for (int round = 0; round < 150; ++round) {
    b->make_zero(0, kPart);
    b->flush();
    write(*b, 0, filled(kPart, 0xbb));
    std::this_thread::yield();
    const Bytes found = content(*b, 0, kPart);
    if (std::memchr(found.data(), 0xaa, found.size()) != nullptr) {
      ADD_FAILURE() << "bytes of the other image, in round " << round;
      break;
    }
    const Bytes of_a = content(*a, 0, kPart);
    if (std::memchr(of_a.data(), 0xbb, of_a.size()) != nullptr) {
      ADD_FAILURE() << "read bytes of the other image, in round " << round;
      break;
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(All, PolicySuite, ::testing::ValuesIn(all_names()),
                         [](const auto& policy) { return policy.param; });

// The same, one step after the other: a writer has looked a place up, and is held up before he
// writes. There is room for little else.
class SmallSpace : public PolicySuite {
 protected:
  SmallSpace() { pool_size_ = 2 * kChunk; }
};

TEST_P(SmallSpace, APlaceIsNotGivenAwayBelowWhoIsAboutToWriteToIt) {
  const auto a = use("a");
  write(*a, 0, filled(kChunk, 0xaa));
  a->flush();
  std::promise<void> go_on;
  std::promise<void> held;
  std::atomic<bool> first = true;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    const bool data =
        operation == FileOperation::write && path.find("catalog") == std::string::npos;
    if (data && first.exchange(false)) {
      held.set_value();
      go_on.get_future().wait();
    }
    return 0;
  });
  std::thread writer([&] { write(*a, 0, filled(kChunk, 0xaa)); });
  held.get_future().wait();
  auto trim = std::async(std::launch::async, [&] {
    a->make_zero(0, kChunk);
    a->flush();
  });
  // It may wait for the writer. If it does not, what it freed is there to be had.
  static_cast<void>(trim.wait_for(std::chrono::milliseconds(300)));
  const auto b = use("b");
  write(*b, 0, filled(kChunk, 0xbb));
  go_on.set_value();
  writer.join();
  trim.get();
  faults_.clear();
  EXPECT_TRUE(content(*b, 0, kChunk) == filled(kChunk, 0xbb));
}

INSTANTIATE_TEST_SUITE_P(All, SmallSpace, ::testing::ValuesIn(all_names()),
                         [](const auto& policy) { return policy.param; });

class Daily : public PolicySuite {};

TEST_P(Daily, EachDayHasAFileOfItsOwnAndAnEmptyOneGoes) {
  const auto image = use("a");
  write(*image, 0, pattern(2, 4 * kChunk));
  image->flush();
  ++today;
  write(*image, 8 * kChunk, pattern(3, 4 * kChunk));
  image->flush();
  const std::string first = store_path() + "/daily-" + std::to_string(today - 1);
  const std::string second = store_path() + "/daily-" + std::to_string(today);
  EXPECT_EQ(read_file(first), pattern(2, 4 * kChunk));
  EXPECT_EQ(read_file(second), pattern(3, 4 * kChunk));
  image->make_zero(0, 4 * kChunk);
  image->flush();
  const auto names = names_in(store_path());
  EXPECT_EQ(std::count(names.begin(), names.end(), "daily-" + std::to_string(today - 1)), 0);
}

INSTANTIATE_TEST_SUITE_P(Example, Daily, ::testing::Values("daily"));

}  // namespace
}  // namespace cowfs::test
