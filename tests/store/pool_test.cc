// The parts of policy `pool`, and what is its own of a store with a pool.

#include "store/pool.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "store/check.h"
#include "store/descriptor.h"
#include "store/pool_restore.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

// ---- the header ---------------------------------------------------------------------------------

TEST(PoolHeader, SaysWhatWasPacked) {
  const PoolHeader header{.uuid = "01234567-89ab-4cde-8f01-23456789abcd",
                          .chunk_size = 65536,
                          .generation = 0x0123456789abcdef};
  const PoolHeader found = unpack_pool_header(pack(header));
  EXPECT_EQ(found.uuid, header.uuid);
  EXPECT_EQ(found.chunk_size, header.chunk_size);
  EXPECT_EQ(found.generation, header.generation);
  EXPECT_EQ(pack(header)[68], std::byte{0xef});
  EXPECT_EQ(pack(header)[75], std::byte{0x01});
}

TEST(PoolHeader, GenerationsAreCountedAndDoNotCoincide) {
  const uint64_t first = next_generation(0);
  EXPECT_EQ(count_of_openings(first), 1U);
  EXPECT_EQ(count_of_openings(next_generation(first)), 2U);
  std::set<uint64_t> seen;
  for (int i = 0; i < 16; ++i) seen.insert(next_generation(first));
  EXPECT_GT(seen.size(), 14U);
  // Whatever a stranger's catalog says: SQLite's integers are signed.
  EXPECT_LE(next_generation(INT64_MAX), uint64_t{INT64_MAX});
}

TEST(PoolHeader, EveryByteCounts) {
  const auto good = pack({.uuid = "01234567-89ab-4cde-8f01-23456789abcd", .chunk_size = 65536});
  for (size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= std::byte{1};
    const Error error = error_of([&] { unpack_pool_header(bad); });
    EXPECT_TRUE(error.code() == EUCLEAN || error.code() == EPROTONOSUPPORT) << i;
  }
  EXPECT_EQ(error_of([&] { unpack_pool_header(std::span(good).first(4095)); }).code(), EUCLEAN);
}

// ---- the store ----------------------------------------------------------------------------------

class PoolStore : public StoreFixture {
 protected:
  void SetUp() override {
    policy_ = "pool";
    chunk_size_ = std::nullopt;
    pool_size_ = 64 * kPoolChunk;
    make_base(pattern(1, 32 * kPoolChunk));
  }
  Error refusal() {
    store_.reset();
    return error_of([this] { open(); });
  }
  std::string check(bool repair = false) { return check_of(store_path(), repair); }
  static std::string check_of(const std::string& store, bool repair = false) {
    CheckOptions check;
    check.repair = repair;
    std::string found;
    check.receive = [&](const Finding& finding) {
      if (finding.severity != Finding::Severity::note) {
        found += finding.kind + (finding.repaired ? " repaired; " : "; ");
      }
    };
    check_store(store, check);
    return found;
  }
  /// Of a store that is not open.
  PoolGeneration generation() {
    return Catalog(catalog_path(), Database::Mode::read_only).pool_generation();
  }
  std::array<std::byte, kPoolHeaderSize> header(uint64_t generation) {
    const StoreRow row = Catalog(catalog_path(), Database::Mode::read_only).store();
    return pack({.uuid = row.uuid, .chunk_size = row.chunk_size, .generation = generation});
  }
  void close() {
    ASSERT_TRUE(store_->close());
    store_.reset();
  }
  void copy_store(const std::string& to) {
    std::filesystem::remove_all(to);
    std::filesystem::copy(
        store_path(), to,
        std::filesystem::copy_options::recursive | std::filesystem::copy_options::copy_symlinks);
  }
  Error refusal_of(const std::string& store) {
    Store::Options wanted = options();
    wanted.directory = store;
    wanted.pool_size.reset();
    return error_of([&] { const Store other(wanted); });
  }
  void open_with_pool(const std::string& pool) {
    Store::Options wanted = options();
    wanted.pool = pool;
    store_ = std::make_unique<Store>(wanted);
  }
  void use_some() {
    open();
    const auto image = use("a");
    write(*image, 0, pattern(2, 4 * kPoolChunk));
    image->flush();
  }
  static constexpr size_t kPoolChunk = 64 << 10;
};

TEST_F(PoolStore, AFileInTheStoreIsMadeAsLargeAsAskedFor) {
  open();
  EXPECT_EQ(store_->facts().chunk_size, kPoolChunk);
  EXPECT_EQ(store_->pool()->space().total, 64 * kPoolChunk);
  EXPECT_EQ(store_->pool()->space().free, 64 * kPoolChunk);
  EXPECT_EQ(store_->space().available, 64 * kPoolChunk);
  EXPECT_EQ(std::filesystem::file_size(pool_path()), kPoolDataOffset + 64 * kPoolChunk);
}

TEST_F(PoolStore, AFullPoolIsAFullDisk) {
  open();
  const auto a = use("a");
  const auto b = use("b");
  write(*a, 0, pattern(2, 32 * kPoolChunk));
  write(*b, 0, pattern(3, 31 * kPoolChunk));
  write(*a, 40 * kPoolChunk, pattern(4, 100));
  const Error error = error_of([&] { write(*b, 31 * kPoolChunk, pattern(5, kPoolChunk)); });
  EXPECT_EQ(error.code(), ENOSPC);
  write(*b, 0, pattern(6, 31 * kPoolChunk));  // in place
  a->flush();
  b->flush();
  // Room comes from another image's trim.
  a->make_zero(0, kPoolChunk);
  a->flush();
  write(*b, 31 * kPoolChunk, pattern(5, kPoolChunk));
  EXPECT_EQ(content(*b, 31 * kPoolChunk, kPoolChunk), pattern(5, kPoolChunk));
}

TEST_F(PoolStore, GrowsInUse) {
  open();
  {
    const auto a = use("a");
    write(*a, 0, pattern(2, 32 * kPoolChunk));
    const auto b = use("b");
    write(*b, 0, pattern(3, 32 * kPoolChunk));
    EXPECT_EQ(error_of([&] { store_->pool()->grow(10 * kPoolChunk); }).code(), EINVAL);
    EXPECT_EQ(error_of([&] { store_->pool()->grow(std::nullopt); }).code(), EINVAL);
    const Error large = error_of([&] { store_->pool()->grow(uint64_t{1} << 62); });
    EXPECT_EQ(large.code(), ERANGE);
    EXPECT_NE(std::string(large.what()).find("smaller than 256 TiB"), std::string::npos)
        << large.what();
    store_->pool()->grow(100 * kPoolChunk);
    write(*b, 32 * kPoolChunk, pattern(4, kPoolChunk));
  }
  reopen();
  EXPECT_EQ(store_->pool()->space().total, 100 * kPoolChunk);
  EXPECT_EQ(store_->pool()->space().free, 35 * kPoolChunk);
}

TEST_F(PoolStore, AMakingThatFailsLeavesNothing) {
  struct Case {
    FileOperation operation;
    int code;
  };
  // The pool cannot be made so large; then, with the catalog there, its header cannot be written.
  for (const Case& fails :
       {Case{FileOperation::truncate, EFBIG}, Case{FileOperation::write, EIO}}) {
    for (const bool has_directory : {false, true}) {
      if (has_directory) std::filesystem::create_directory(store_path());
      faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
        return path == pool_path() && operation == fails.operation ? fails.code : 0;
      });
      EXPECT_EQ(error_of([this] { open(); }).code(), fails.code);
      faults_.clear();
      EXPECT_FALSE(std::filesystem::exists(store_path()));
      std::filesystem::remove_all(store_path());
    }
  }
  open();
}

TEST_F(PoolStore, SpaceThatWasFreedIsKnownAfterReopening) {
  use_some();
  store_->remove("a");
  reopen();
  EXPECT_EQ(store_->pool()->space().free, 64 * kPoolChunk);
}

TEST_F(PoolStore, AnotherStoresPoolIsRefused) {
  use_some();
  reopen();
  const std::string pool = directory_ / "elsewhere";
  std::filesystem::copy_file(pool_path(), pool);
  store_.reset();
  const File file(pool, O_RDWR);
  file.write(pack({.uuid = "01234567-89ab-4cde-8f01-23456789abcd", .chunk_size = 65536}), 0);
  std::filesystem::rename(pool, pool_path());
  const Error error = refusal();
  EXPECT_EQ(error.code(), EUCLEAN);
  EXPECT_NE(std::string(error.what()).find("another store"), std::string::npos) << error.what();
  EXPECT_EQ(check(), "pool; ");
}

TEST_F(PoolStore, WhatMkfsWroteIsSeen) {
  use_some();
  store_.reset();
  File(pool_path(), O_RDWR).write(pattern(9, 8), 1080);
  EXPECT_EQ(refusal().code(), EUCLEAN);
  EXPECT_EQ(check(), "pool; ");
}

TEST_F(PoolStore, AMissingOrShorterPoolIsRefused) {
  use_some();
  store_.reset();
  const std::string kept = directory_ / "kept";
  std::filesystem::rename(pool_path(), kept);
  EXPECT_EQ(refusal().code(), EUCLEAN);
  EXPECT_EQ(check(), "pool; ");
  std::filesystem::rename(kept, pool_path());
  std::filesystem::resize_file(pool_path(), kPoolDataOffset + kPoolChunk);
  EXPECT_EQ(refusal().code(), EUCLEAN);
}

TEST_F(PoolStore, APoolElsewhereIsLinkedAndMayMove) {
  const std::string place = directory_ / "cow space";
  Store::Options wanted = options();
  wanted.pool = place;
  store_ = std::make_unique<Store>(wanted);
  EXPECT_TRUE(std::filesystem::is_symlink(pool_path()));
  write(*use("a"), 0, pattern(2, 1000));
  reopen();
  EXPECT_EQ(content(*use("a"), 0, 1000), pattern(2, 1000));
  ASSERT_TRUE(store_->close());
  store_.reset();
  const std::string moved = directory_ / "moved";
  std::filesystem::rename(place, moved);
  EXPECT_EQ(refusal().code(), EUCLEAN);
  wanted.pool = moved;
  store_ = std::make_unique<Store>(wanted);
  reopen();
  EXPECT_EQ(content(*use("a"), 0, 1000), pattern(2, 1000));
}

// I10: a store may come from a stranger, and lead anywhere.
TEST_F(PoolStore, ALinkAloneMakesNoPool) {
  open();
  store_.reset();
  const std::string blank = directory_ / "blank";
  write_file(blank, {});
  std::filesystem::resize_file(blank, std::filesystem::file_size(pool_path()));
  std::filesystem::remove(pool_path());
  std::filesystem::create_symlink(blank, pool_path());
  EXPECT_EQ(refusal().code(), EUCLEAN);
  EXPECT_EQ(allocated(blank), 0U);
  Store::Options wanted = options();
  wanted.pool = blank;
  store_ = std::make_unique<Store>(wanted);
  EXPECT_GT(allocated(blank), 0U);
}

TEST_F(PoolStore, AnUnusedPoolThatHasItsHeaderNeedNotBeNamedAgain) {
  Store::Options wanted = options();
  wanted.pool = directory_ / "elsewhere";
  { const Store store(wanted); }
  wanted.pool.reset();
  wanted.pool_size.reset();
  const Store store(wanted);
}

TEST_F(PoolStore, TwoStoresThatAreCopiesNeverHaveOnePoolOpenAtOnce) {
  Store::Options wanted = options();
  wanted.pool = directory_ / "elsewhere";
  { const Store store(wanted); }
  std::filesystem::copy(
      store_path(), directory_ / "copy",
      std::filesystem::copy_options::recursive | std::filesystem::copy_options::copy_symlinks);
  wanted.pool.reset();
  wanted.pool_size.reset();
  const Store store(wanted);
  wanted.directory = directory_ / "copy";
  EXPECT_EQ(error_of([&] { const Store other(wanted); }).code(), EBUSY);
}

TEST_F(PoolStore, TheBaseIsNoPool) {
  write_file(base_path(), filled(8 << 20, 0));
  Store::Options wanted = options();
  wanted.pool = base_path();
  wanted.pool_size.reset();
  EXPECT_EQ(error_of([&] { const Store store(wanted); }).code(), EINVAL);
  EXPECT_EQ(read_file(base_path()), filled(8 << 20, 0));
  EXPECT_FALSE(std::filesystem::exists(store_path()));
}

TEST_F(PoolStore, ALinkThatLeadsNowhereAndADeviceThatIsNotThereAreRefused) {
  Store::Options wanted = options();
  for (const std::string& path : {directory_ / "link", std::string("/dev/cowfs-test-none")}) {
    if (path.ends_with("/link")) std::filesystem::create_symlink("nowhere", path);
    wanted.pool = path;
    EXPECT_EQ(error_of([&] { const Store store(wanted); }).code(), ENOENT);
  }
  EXPECT_TRUE(std::filesystem::is_symlink(directory_ / "link"));
}

TEST_F(PoolStore, CheckOfOneInUseLooksAtThePoolToo) {
  use_some();
  CheckOptions check;
  std::string found;
  check.receive = [&](const Finding& finding) { found += finding.kind + "; "; };
  store_->check(check);
  EXPECT_EQ(found.find("pool; "), std::string::npos) << found;
  File(pool_path(), O_RDWR).write(pattern(9, 8), 1080);
  store_->check(check);
  EXPECT_NE(found.find("pool; "), std::string::npos) << found;
}

TEST_F(PoolStore, AFileThatHoldsSomethingIsNotTaken) {
  const std::string place = directory_ / "precious";
  write_file(place, pattern(7, 100));
  Store::Options wanted = options();
  wanted.pool = place;
  EXPECT_EQ(error_of([&] { Store store(wanted); }).code(), EEXIST);
  EXPECT_EQ(read_file(place), pattern(7, 100));
}

TEST_F(PoolStore, OtherPoliciesTakeNoPool) {
  policy_ = "sparse";
  Store::Options wanted = options();
  wanted.pool_size = 1 << 20;
  EXPECT_EQ(error_of([&] { Store store(wanted); }).code(), EINVAL);
}

TEST_F(PoolStore, AStoreWhoseMakingWasCutShortIsMadeAnew) {
  use_some();
  store_.reset();
  // The pool is there, blank, and no catalog yet.
  for (const char* name : {"catalog.db", "catalog.db-wal", "catalog.db-shm"}) {
    std::filesystem::remove(store_path() + "/" + name);
  }
  // This one is not blank: a catalog was lost.
  EXPECT_EQ(refusal().code(), EEXIST);
  std::filesystem::resize_file(pool_path(), 0);
  open();
  EXPECT_EQ(content(*use("a")), base_content_);
}

// A sector is written whole or not at all.
TEST_F(PoolStore, AFirstHeaderThatAPowerCutLeftHalfWrittenIsWrittenAnew) {
  open();
  store_.reset();
  const File pool(pool_path(), O_RDWR);
  for (const size_t torn : {size_t{0}, size_t{7 * 512}}) {
    pool.write(Bytes(512), torn);
    EXPECT_EQ(check(), "");
    open();
    store_.reset();
    Bytes found(kPoolHeaderSize);
    pool.read_exactly(found, 0);
    const auto wanted = header(generation().now);
    EXPECT_TRUE(std::equal(found.begin(), found.end(), wanted.begin()));
  }
  // Not where something lies in it.
  use_some();
  store_.reset();
  pool.write(Bytes(512), 0);
  EXPECT_EQ(refusal().code(), EUCLEAN);
}

// ---- generations --------------------------------------------------------------------------------

TEST_F(PoolStore, EachOpeningAndEachCloseBeginsAGeneration) {
  open();
  store_.reset();
  const uint64_t first = generation().now;
  EXPECT_EQ(count_of_openings(first), 2U);  // made, opened
  open();
  close();
  EXPECT_EQ(count_of_openings(generation().now), 4U);
  EXPECT_EQ(count_of_openings(generation().before), 3U);
  EXPECT_EQ(check(), "");
  EXPECT_EQ(count_of_openings(generation().now), 4U) << "a look changes nothing";
  Store::Options names = options();
  names.names_only = true;
  names.pool_size.reset();
  { const Store store(names); }
  EXPECT_EQ(count_of_openings(generation().now), 5U);
}

TEST_F(PoolStore, ACopyOfTheStoreOverAPoolThatWasUsedSinceIsRefused) {
  const std::string pool = directory_ / "elsewhere";
  const std::string copy = directory_ / "copy";
  open_with_pool(pool);
  write(*use("a"), 0, pattern(2, 4 * kPoolChunk));
  close();
  copy_store(copy);
  EXPECT_EQ(check_of(copy), "");
  open_with_pool(pool);
  write(*use("b"), 0, pattern(3, 4 * kPoolChunk));
  close();
  const Bytes before = read_file(pool);
  const Error error = refusal_of(copy);
  EXPECT_EQ(error.code(), EUCLEAN);
  EXPECT_NE(std::string(error.what()).find("is newer than the catalog"), std::string::npos)
      << error.what();
  EXPECT_EQ(check_of(copy), "pool; ");
  EXPECT_EQ(summarize_store(copy).pool->problem, error.what());
  EXPECT_EQ(summarize_store(store_path()).pool->problem, "");
  EXPECT_EQ(read_file(pool), before);
  // The one that was used last is as good as before.
  EXPECT_EQ(check(), "");
  open_with_pool(pool);
  EXPECT_EQ(content(*use("b"), 0, 4 * kPoolChunk), pattern(3, 4 * kPoolChunk));
}

TEST_F(PoolStore, ACopyThatWasMadeWhileTheStoreWasOpenIsRefusedOnceItIsClosed) {
  const std::string pool = directory_ / "elsewhere";
  const std::string copy = directory_ / "copy";
  open_with_pool(pool);
  copy_store(copy);
  write(*use("a"), 0, pattern(2, kPoolChunk));
  close();
  const Error error = refusal_of(copy);
  EXPECT_EQ(error.code(), EUCLEAN);
  EXPECT_NE(std::string(error.what()).find("is newer"), std::string::npos) << error.what();
}

TEST_F(PoolStore, APoolOfAnEarlierTimeIsRefused) {
  use_some();
  close();
  const std::string kept = directory_ / "kept";
  std::filesystem::copy_file(pool_path(), kept);
  open();
  write(*use("b"), 0, pattern(3, kPoolChunk));
  close();
  std::filesystem::rename(kept, pool_path());
  const Error error = refusal();
  EXPECT_EQ(error.code(), EUCLEAN);
  EXPECT_NE(std::string(error.what()).find("is older than the catalog"), std::string::npos)
      << error.what();
  EXPECT_EQ(check(), "pool; ");
}

// As where two disks are exchanged at boot: both stores have one UUID and were opened as often.
TEST_F(PoolStore, TwoCopiesThatWereUsedAsOftenDoNotTakeEachOthersPools) {
  use_some();
  close();
  const std::string copy = directory_ / "copy";
  copy_store(copy);
  open();
  close();
  Store::Options wanted = options();
  wanted.directory = copy;
  wanted.pool_size.reset();
  {
    Store other(wanted);
    EXPECT_TRUE(other.close());
  }
  const std::string theirs = copy + "/pool";
  const std::string aside = directory_ / "aside";
  std::filesystem::rename(theirs, aside);
  std::filesystem::rename(pool_path(), theirs);
  std::filesystem::rename(aside, pool_path());
  for (const Error& error : {refusal(), refusal_of(copy)}) {
    EXPECT_EQ(error.code(), EUCLEAN);
    EXPECT_NE(std::string(error.what()).find("used by another copy"), std::string::npos)
        << error.what();
  }
}

TEST_F(PoolStore, AHeaderThatAPowerCutLeftHalfWrittenIsAccepted) {
  use_some();
  close();
  const File pool(pool_path(), O_RDWR);
  constexpr size_t kSector = 512;
  for (size_t kept = 0; kept <= kPoolHeaderSize; kept += kSector) {
    // All of the new one but this sector; at last all of the old one.
    const PoolGeneration now = generation();
    const auto old_header = header(now.before);
    if (kept < kPoolHeaderSize) {
      pool.write(std::span(old_header).subspan(kept, kSector), kept);
    } else {
      pool.write(old_header, 0);
    }
    EXPECT_EQ(check(), "") << kept;
    open();
    EXPECT_EQ(content(*use("a"), 0, 4 * kPoolChunk), pattern(2, 4 * kPoolChunk));
    close();
    Bytes found(kPoolHeaderSize);
    pool.read_exactly(found, 0);
    const auto wanted = header(generation().now);
    EXPECT_TRUE(std::equal(found.begin(), found.end(), wanted.begin())) << kept;
  }
  // A sector of any other header is none of a power cut.
  const auto foreign = header(generation().now + 1);
  pool.write(std::span(foreign).first(kSector), 0);
  EXPECT_EQ(refusal().code(), EUCLEAN);
  EXPECT_EQ(check(), "pool; ");
}

TEST_F(PoolStore, OpeningsThatAreCutShortBetweenCatalogAndPoolDoNotAddUp) {
  use_some();
  close();
  // The catalog has the next generation, the pool not yet; and after that, once more.
  for (int i = 0; i < 3; ++i) {
    faults_.set([this](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
      return path == pool_path() && operation == FileOperation::write ? EIO : 0;
    });
    EXPECT_EQ(refusal().code(), EIO);
    faults_.clear();
    EXPECT_EQ(check(), "");
  }
  open();
  EXPECT_EQ(content(*use("a"), 0, 4 * kPoolChunk), pattern(2, 4 * kPoolChunk));
  // What had been begun is not a generation that a copy can hold on to.
  store_.reset();
  faults_.set([this](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    return path == pool_path() && operation == FileOperation::write ? EIO : 0;
  });
  EXPECT_EQ(refusal().code(), EIO);
  faults_.clear();
  const std::string copy = directory_ / "copy";
  copy_store(copy);
  open();
  store_.reset();
  std::filesystem::copy_file(pool_path(), copy + "/pool",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_NE(std::string(refusal_of(copy).what()).find("is newer"), std::string::npos);
}

TEST_F(PoolStore, AServerThatTakesOverGoesOnInTheGeneration) {
  const Descriptor memory(LiveMemory::make(), "memory");
  Store::Options wanted = options();
  wanted.live = std::make_shared<LiveMemory>(memory.fd());
  store_ = std::make_unique<Store>(wanted);
  {
    const auto image = use("a");
    write(*image, 0, pattern(2, kPoolChunk));
    image->flush();
  }
  store_.reset();
  const uint64_t before = generation().now;
  wanted.pool_size.reset();
  wanted.create = false;
  wanted.live = std::make_shared<LiveMemory>(memory.fd());
  ASSERT_TRUE(wanted.live->taken_over());
  store_ = std::make_unique<Store>(wanted);
  EXPECT_EQ(content(*use("a"), 0, kPoolChunk), pattern(2, kPoolChunk));
  store_.reset();
  EXPECT_EQ(generation().now, before);
}

// A host that writes elsewhere, as btrfs does, needs space for a header too.
TEST_F(PoolStore, AFullDiskDoesNotKeepTheStoreFromBeingOpened) {
  use_some();
  close();
  bool full = true;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    if (path != pool_path() || operation != FileOperation::write) return 0;
    return std::exchange(full, false) ? ENOSPC : 0;
  });
  open();
  EXPECT_FALSE(full);
}

// ---- a header that was written over -------------------------------------------------------------

TEST_F(PoolStore, AHeaderThatWasWrittenOverIsRestoredAndWhatWasThereKept) {
  use_some();
  close();
  Bytes swap = pattern(9, kPoolHeaderSize);
  std::memcpy(&swap[4086], "SWAPSPACE2", 10);
  File(pool_path(), O_RDWR).write(swap, 0);
  const Error error = refusal();
  EXPECT_NE(std::string(error.what()).find("restore-header"), std::string::npos) << error.what();
  const RestoredHeader restored = restore_pool_header(store_path(), false);
  EXPECT_EQ(restored.found, "swap space (mkswap)");
  EXPECT_EQ(read_file(restored.saved), swap);
  EXPECT_EQ(check(), "");
  EXPECT_EQ(restore_pool_header(store_path(), false).found, "");
  open();
  EXPECT_EQ(content(*use("a"), 0, 4 * kPoolChunk), pattern(2, 4 * kPoolChunk));
}

TEST_F(PoolStore, AValidHeaderIsNotWrittenOver) {
  use_some();
  close();
  const auto now = header(generation().now);
  const std::string uuid = "01234567-89ab-4cde-8f01-23456789abcd";
  for (const auto& other : {pack({.uuid = uuid, .chunk_size = kPoolChunk, .generation = 1}),
                            header(next_generation(generation().now)), header(1)}) {
    File(pool_path(), O_RDWR).write(other, 0);
    for (const bool force : {false, true}) {
      EXPECT_EQ(error_of([&] { restore_pool_header(store_path(), force); }).code(), EUCLEAN);
    }
    Bytes found(kPoolHeaderSize);
    File(pool_path(), O_RDONLY).read_exactly(found, 0);
    EXPECT_TRUE(std::equal(found.begin(), found.end(), other.begin()));
  }
  File(pool_path(), O_RDWR).write(now, 0);
  open();
}

TEST_F(PoolStore, WhatMayBeAnotherDeviceGetsAHeaderByForceOnly) {
  use_some();
  close();
  const auto refused = [&](const std::string& why) {
    const Error error = error_of([&] { restore_pool_header(store_path(), false); });
    EXPECT_EQ(error.code(), EUCLEAN);
    EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
  };
  const std::string kept = directory_ / "kept";
  std::filesystem::copy_file(pool_path(), kept);
  File(pool_path(), O_RDWR).write(pattern(9, 16384), 0);
  refused("more than that in its first 2 MiB");
  // One that was made anew.
  const uint64_t size = std::filesystem::file_size(pool_path());
  std::filesystem::resize_file(pool_path(), 0);
  refused("has become shorter");
  std::filesystem::resize_file(pool_path(), size);
  refused("holds only zeros where images have chunks");
  std::filesystem::rename(kept, pool_path());
  File(pool_path(), O_RDWR).write(pattern(9, 16384), 0);
  EXPECT_EQ(restore_pool_header(store_path(), true).found, "what is no header of a pool");
  open();
  EXPECT_EQ(content(*use("a"), 0, 4 * kPoolChunk), pattern(2, 4 * kPoolChunk));
}

TEST_F(PoolStore, CheckFindsSlotsThatAreLostFreeOrSharedAndRepairs) {
  use_some();
  write(*use("b"), 0, pattern(3, 2 * kPoolChunk));
  use("b")->flush();
  ASSERT_TRUE(store_->close());
  store_.reset();
  EXPECT_EQ(check(), "");
  const auto page = [&](const std::string& bits) {
    run_sql(catalog_path(), "UPDATE pool_page SET bits = x'" + bits + "'");
  };
  page("ff0000000000000000000000000000000000" + std::string(1024 - 36, '0'));
  EXPECT_NE(check().find("lost_slot"), std::string::npos) << check();
  EXPECT_NE(check(true).find("lost_slot repaired"), std::string::npos);
  EXPECT_EQ(check(), "");
  page("01" + std::string(1022, '0'));
  EXPECT_NE(check().find("free_slot_in_use"), std::string::npos);
  EXPECT_NE(check(true).find("free_slot_in_use repaired"), std::string::npos);
  EXPECT_EQ(check(), "");
  open();
  EXPECT_EQ(content(*use("a"), 0, 4 * kPoolChunk), pattern(2, 4 * kPoolChunk));
  EXPECT_EQ(content(*use("b"), 0, 2 * kPoolChunk), pattern(3, 2 * kPoolChunk));
  ASSERT_TRUE(store_->close());
  store_.reset();
  run_sql(catalog_path(),
          "UPDATE map_page SET bits = (SELECT bits FROM map_page WHERE layer = 1) WHERE layer = 2");
  const std::string found = check();
  EXPECT_NE(found.find("shared_slot; shared_slot"), std::string::npos) << found;
  EXPECT_EQ(check(true).find("repaired"), std::string::npos) << "nothing is certain here";
}

TEST_F(PoolStore, CheckSaysThatAChunkOfThePoolIsLost) {
  use_some();
  close();
  File(pool_path(), O_RDWR).punch(kPoolDataOffset, kPoolChunk);
  std::string what;
  CheckOptions check;
  check.receive = [&](const Finding& finding) { what += finding.what; };
  check_store(store_path(), check);
  EXPECT_NE(what.find("over a hole of the pool"), std::string::npos) << what;
  EXPECT_EQ(what.find("CoW file"), std::string::npos) << what;
}

TEST_F(PoolStore, AMapThatNamesSlotsBehindThePoolIsDamage) {
  use_some();
  ASSERT_TRUE(store_->close());
  store_.reset();
  run_sql(catalog_path(),
          "UPDATE map_page SET bits = x'feffffff" + std::string(1016, '0') + "' WHERE layer = 1");
  EXPECT_NE(check().find("bad_map"), std::string::npos);
  open();
  const auto image = store_->find("a");
  EXPECT_EQ(error_of([&] { content(*image->use()); }).code(), EUCLEAN);
}

}  // namespace
}  // namespace cowfs::test
