// A store whose process is killed, and which another takes over with the memory that it left (I2).
//
// Each child opens the store with the same LiveMemory, looks whether every image is as the one
// before left it, and goes on changing them until it is killed. What has been done stands in memory
// that all share; of what was under way when the kill came, each sector may be old or new.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>

#include "store/live_memory.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kMostSectors = 4096;
constexpr uint64_t kBaseSectors = 1500;

enum class What : uint32_t { nothing, write, zero, resize };

/// What one child says and the next reads: of one image, a number for each sector.
struct Account {
  std::atomic<uint64_t> sectors;  // the image's size
  std::array<uint64_t, kMostSectors> content;
  // Under way:
  std::atomic<What> what;
  uint64_t first, count, number;

  uint64_t writes;
  std::atomic<uint64_t> steps;
  std::atomic<uint64_t> rounds;
  std::array<char, 512> complaint;
};

Bytes sector_of(uint64_t number) {
  Bytes bytes(kSector);
  for (size_t i = 0; i < bytes.size(); i += sizeof(number)) {
    std::memcpy(bytes.data() + i, &number, sizeof(number));
  }
  return bytes;
}

Store::NewImage named(const std::string& name) {
  Store::NewImage image;
  image.name = name;
  return image;
}

uint64_t base_number(uint64_t sector) { return (uint64_t{1} << 40) + sector; }

class TakeOver : public StoreFixture {
 protected:
  void SetUp() override {
    Bytes base;
    for (uint64_t i = 0; i < kBaseSectors; ++i) {
      const Bytes sector = sector_of(base_number(i));
      base.insert(base.end(), sector.begin(), sector.end());
    }
    make_base(base);
    memory_ = LiveMemory::make();
    void* const shared =
        ::mmap(nullptr, sizeof(Account), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(shared, MAP_FAILED);
    account_ = static_cast<Account*>(shared);
    account_->sectors = kBaseSectors;
    for (uint64_t i = 0; i < kBaseSectors; ++i) account_->content[i] = base_number(i);
  }
  void TearDown() override {
    StoreFixture::TearDown();
    ::munmap(account_, sizeof(Account));
    ::close(memory_);
  }

  Store& open_with_memory() {
    Store::Options wanted = options();
    wanted.live = std::make_shared<LiveMemory>(memory_);
    store_ = std::make_unique<Store>(wanted);
    return *store_;
  }

  /// Throws if the image is not as the account says; settles what was under way.
  void look(Image& image) const {
    Account& account = *account_;
    const What what = account.what;
    const uint64_t size = image.size() / kSector;
    const auto complain = [&](const std::string& text) {
      throw std::runtime_error(text + " (round " + std::to_string(account.rounds) + ")");
    };
    if (size != account.sectors) {
      const bool grew = what == What::write && size == account.first + account.count;
      const bool resized = what == What::resize && size == account.count;
      if (!grew && !resized) {
        complain("size: " + std::to_string(size) + ", not " + std::to_string(account.sectors));
      }
      for (uint64_t i = size; i < kMostSectors; ++i) account.content[i] = 0;
      account.sectors = size;
    }
    const Bytes all = content(image);
    for (uint64_t i = 0; i < size; ++i) {
      uint64_t number = 0;
      std::memcpy(&number, all.data() + i * kSector, sizeof(number));
      const bool touched =
          what != What::resize && i >= account.first && i < account.first + account.count;
      const bool right = number == account.content[i] ||
                         (what != What::nothing && touched && number == account.number);
      if (!right || std::memcmp(all.data() + i * kSector, sector_of(number).data(), kSector) != 0) {
        complain("sector " + std::to_string(i) + ": " + std::to_string(number) + ", not " +
                 std::to_string(account.content[i]) + "; under way " +
                 std::to_string(static_cast<int>(what)) + " " + std::to_string(account.first) +
                 "+" + std::to_string(account.count));
      }
      account.content[i] = number;
    }
    account.what = What::nothing;
  }

  void step(Image& image, std::mt19937_64& random) const {
    Account& account = *account_;
    const auto below = [&](uint64_t limit) { return random() % limit; };
    const uint64_t kind = below(100);
    const uint64_t size = account.sectors;
    if (kind < 10) {
      image.flush();
      return;
    }
    if (kind < 14) {
      account.count = below(kMostSectors);
      account.what = What::resize;
      image.resize(account.count * kSector);
      for (uint64_t i = std::min(size, account.count); i < kMostSectors; ++i) {
        account.content[i] = 0;
      }
      account.sectors = account.count;
      account.what = What::nothing;
      return;
    }
    const bool zero = kind < 30;
    account.first = below(zero ? std::max<uint64_t>(size, 1) : kMostSectors - 64);
    account.count = 1 + below(64);
    if (zero) account.count = std::min(account.count, std::max<uint64_t>(size, 1) - account.first);
    account.number = zero ? 0 : ++account.writes;
    // A write behind the end leaves zeros between, which it has to cover as well.
    if (account.first > size) {
      account.count += account.first - size;
      account.first = size;
    }
    account.what = zero ? What::zero : What::write;
    if (zero) {
      image.make_zero(account.first * kSector, account.count * kSector);
    } else {
      Bytes bytes;
      for (uint64_t i = 0; i < account.count; ++i) {
        const Bytes sector = sector_of(account.number);
        bytes.insert(bytes.end(), sector.begin(), sector.end());
      }
      image.write(bytes, account.first * kSector);
    }
    const uint64_t end = account.first + account.count;
    for (uint64_t i = account.first; i < std::min(end, zero ? size : end); ++i) {
      account.content[i] = account.number;
    }
    if (end > size && !zero) account.sectors = end;
    account.what = What::nothing;
  }

  /// A child that goes on until it is killed; ends by itself only if something is wrong.
  pid_t start(uint64_t seed) {
    const pid_t child = ::fork();
    if (child != 0) return child;
    try {
      Store& store = open_with_memory();
      std::shared_ptr<Image> image = store.find("dom1");
      if (image == nullptr) image = store.create(named("dom1"));
      const Image::Use use = image->use();
      look(*use);
      ++account_->rounds;
      for (std::mt19937_64 random(seed);; ++account_->steps) step(*use, random);
    } catch (const std::exception& error) {
      std::snprintf(account_->complaint.data(), account_->complaint.size(), "%s", error.what());
    }
    ::_exit(1);
  }

  int memory_ = -1;
  Account* account_ = nullptr;
};

TEST_F(TakeOver, KilledAgainAndAgainItLosesNothingThatWasDone) {
  const uint64_t seed = random_seed();
  SCOPED_TRACE("COWFS_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int i = 0; i < 150; ++i) {
    const pid_t child = start(random());
    // Half of them in the middle of their work, however fast they are, the others at any moment.
    int status = 0;
    if (i % 2 == 0) {
      const uint64_t enough = account_->steps + 1 + random() % 40;
      while (account_->steps < enough && ::waitpid(child, &status, WNOHANG) == 0) ::usleep(100);
    } else {
      ::usleep(static_cast<useconds_t>(random() % 40'000));
    }
    if (status == 0) {
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
    }
    ASSERT_TRUE(WIFSIGNALED(status)) << account_->complaint.data();
  }
  EXPECT_GE(account_->rounds, 75U);
  {
    Store& store = open_with_memory();
    look(*store.find("dom1")->use());
    EXPECT_TRUE(store.close());
    store_.reset();
  }
  // And the catalog has all of it now.
  open();
  look(*use("dom1"));
}

TEST_F(TakeOver, WhatWasOnlyInMemoryIsCommittedInTheBackground) {
  const pid_t child = ::fork();
  if (child == 0) {
    Store& store = open_with_memory();
    store.create(named("dom1"))->use()->write(filled(8192, 7), 4096);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(map_on_disk(catalog_path(), 1, 4), "....");
  Store& store = open_with_memory();
  EXPECT_TRUE(store.find("dom1")->dirty());
  store.find("dom1")->use()->flush();
  EXPECT_EQ(map_on_disk(catalog_path(), 1, 4), ".pp.");
  EXPECT_EQ(content(*store.find("dom1")->use(), 4096, 8192), filled(8192, 7));
}

TEST_F(TakeOver, WhatCannotHaveBeenLeftMakesTheImageFail) {
  const pid_t child = ::fork();
  if (child == 0) {
    Store& store = open_with_memory();
    const auto image = store.create(named("dom1"));
    const Image::Use use = image->use();
    use->write(filled(4096, 7), 0);
    use->flush();
    use->write(filled(4096, 8), 4096);
    // State 3, which no chunk has, or a slot that no pool has.
    LiveMemory memory(memory_);
    auto* const words = static_cast<uint64_t*>(memory.map_segment(LiveMemory::Region::maps, 0));
    words[64] = policy_ == "sparse" ? ~uint64_t{0} : 0xfffffffefffffffe;
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  Store& store = open_with_memory();
  const auto image = store.find("dom1");
  EXPECT_TRUE(image->failed());
  EXPECT_EQ(content(*image->use(), 0, 4096), filled(4096, 7));
  EXPECT_EQ(content(*image->use(), 4096, 10),
            Bytes(base_content_.begin() + 4096, base_content_.begin() + 4106));
  EXPECT_EQ(error_of([&] { image->use()->write(filled(10, 1), 0); }).code(), EIO);
}

TEST_F(TakeOver, MemoryOfAnotherLayoutIsRefusedByNameAndVersion) {
  { const LiveMemory memory(memory_); }
  const uint32_t version = 99;
  ASSERT_EQ(::pwrite(memory_, &version, sizeof(version), 8), 4);
  const Error error = error_of([&] { const LiveMemory memory(memory_); });
  EXPECT_EQ(error.code(), EPROTONOSUPPORT);
  EXPECT_NE(std::string(error.what()).find("version 99"), std::string::npos);
}

TEST_F(TakeOver, AnOlderCatalogIsNotUpgradedForAProgramThatMayFail) {
  policy_ = "sparse";  // as all were
  {
    open_with_memory();
    store_.reset();
  }
  run_sql(catalog_path(),
          std::string(kBackToVersion2) + "DROP TABLE request; PRAGMA user_version = 1");
  EXPECT_EQ(error_of([&] { open_with_memory(); }).code(), EPROTONOSUPPORT);
  open();  // by a mount of its own it is
}

TEST_F(TakeOver, DoneRequestsAreOnRecordAndForgottenWhenAnswered) {
  const pid_t child = ::fork();
  if (child == 0) {
    Store& store = open_with_memory();
    store.create(named("a"), 10);
    store.create(named("b"), 12);
    store.answered(12);
    store.rename("a", "b", Store::Rename::exchange, 14);
    store.remove("b", 16);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  {
    Store& store = open_with_memory();
    EXPECT_EQ(store.done(10), std::optional<uint64_t>(2));
    EXPECT_EQ(store.done(12), std::nullopt);
    EXPECT_EQ(store.done(14), std::optional<uint64_t>(0));
    EXPECT_EQ(store.done(16), std::optional<uint64_t>(0));
    EXPECT_EQ(store.done(18), std::nullopt);
    EXPECT_EQ(store.image_count(), 1U);
    store_.reset();
  }
  // A mount of its own has other requests.
  EXPECT_EQ(open().done(10), std::nullopt);
}

}  // namespace
}  // namespace cowfs::test
