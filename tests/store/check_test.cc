#include "store/check.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/store/check_fixture.h"

namespace cowfs::test {
namespace {

namespace fs = std::filesystem;

/// What is wrong with the CoW files and the space in them, and what is not checked at all.
class CheckTest : public CheckFixture {};

TEST_F(CheckTest, ASoundStoreIsClean) {
  const auto before = files();
  const Outcome outcome = check_as(false);
  EXPECT_TRUE(outcome.findings.empty()) << outcome.text();
  EXPECT_EQ(outcome.result.images, 2U);
  EXPECT_EQ(files(), before);
  EXPECT_EQ(check_as(true).findings.size(), 0U);
  EXPECT_EQ(files(), before);
}

TEST_F(CheckTest, ReservedSpaceIsNoLeak) {
  open();
  use("dom1")->reserve(30 * kChunk, 20 * kChunk);
  EXPECT_TRUE(store_->close());
  store_.reset();
  const Outcome outcome = check_as(false);
  EXPECT_TRUE(outcome.findings.empty()) << outcome.text();
}

TEST_F(CheckTest, TheLogThatADeadServerLeftIsReadAndKept) {
  open();
  write(*use("dom1"), 30 * kChunk, pattern(4, kChunk));
  use("dom1")->flush();
  const std::string copy = directory_ / "copy";
  fs::copy(store_path(), copy, fs::copy_options::recursive);
  ASSERT_GT(fs::file_size(copy + "/catalog.db-wal"), 0U);
  // What the log alone says is present is over a hole.
  File(copy + "/layers/1.cow", O_RDWR).punch(30 * kChunk, kChunk);
  const Bytes log = read_file(copy + "/catalog.db-wal");
  std::vector<Finding> found;
  // The copy has lost its holes, so there are leaks as well.
  check_store(copy, {.receive = [&](const Finding& finding) {
                if (finding.severity == Severity::damage) found.push_back(finding);
              }});
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].kind, "lost_data");
  EXPECT_EQ(found[0].range->offset, 30 * kChunk);
  EXPECT_EQ(read_file(copy + "/catalog.db-wal"), log);
}

// ---- space --------------------------------------------------------------------------------------

TEST_F(CheckTest, PresentChunksOverAHoleAreDamageThatNothingMends) {
  punch(1, 2 * kChunk, kChunk);
  punch(1, 17 * kChunk, 2 * kChunk);
  const Outcome outcome = check_as(false);
  ASSERT_EQ(outcome.findings.size(), 2U) << outcome.text();
  EXPECT_EQ(outcome.result.damage, 2U);
  EXPECT_EQ(outcome.findings[0].image, "dom1");
  EXPECT_EQ(outcome.findings[0].kind, "lost_data");
  EXPECT_EQ(outcome.findings[0].range->offset, 2 * kChunk);
  EXPECT_EQ(outcome.findings[0].range->length, kChunk);
  EXPECT_EQ(outcome.findings[1].range->offset, 17 * kChunk);
  EXPECT_EQ(outcome.findings[1].range->length, 2 * kChunk);
  EXPECT_FALSE(outcome.findings[0].repairable);
  const auto before = files();
  EXPECT_EQ(check_as(true).result.repaired, 0U);
  EXPECT_EQ(files(), before);
}

TEST_F(CheckTest, PresentChunksBehindTheEndOfTheFileAreDamage) {
  File(cow(2), O_RDWR).truncate(18 * kChunk);
  const Outcome outcome = expect(Severity::damage, "lost_data", "over a hole");
  EXPECT_EQ(outcome.findings[0].image, "dom2");
  EXPECT_EQ(outcome.findings[0].range->offset, 18 * kChunk);
  EXPECT_EQ(outcome.findings[0].range->length, 2 * kChunk);
  expect_no_repair();
}

TEST_F(CheckTest, SpaceOfAbsentChunksIsALeakAndGivenBack) {
  const auto contents = all_contents();
  fill(1, 10 * kChunk, 3 * kChunk);
  const Outcome outcome = expect(Severity::leak, "leaked_space", "not present");
  EXPECT_EQ(outcome.findings[0].image, "dom1");
  EXPECT_EQ(outcome.findings[0].range->offset, 10 * kChunk);
  EXPECT_EQ(outcome.findings[0].range->length, 3 * kChunk);
  EXPECT_EQ(outcome.result.leaked_bytes, 3 * kChunk);
  const uint64_t before = allocated(cow(1));
  expect_repair({cow(1)}, contents);
  EXPECT_EQ(allocated(cow(1)), before - 3 * kChunk);
}

TEST_F(CheckTest, SpaceOfZeroChunksIsALeakAndGivenBack) {
  const auto contents = all_contents();
  fill(2, 5 * kChunk, kChunk);
  const Outcome outcome = expect(Severity::leak, "leaked_space", "not present");
  EXPECT_EQ(outcome.findings[0].range->offset, 5 * kChunk);
  expect_repair({cow(2)}, contents);
}

TEST_F(CheckTest, SpaceBehindTheImagesEndIsALeakAndGivenBack) {
  const auto contents = all_contents();
  fill(1, 100 * kChunk, 2 * kChunk);
  const Outcome outcome = expect(Severity::leak, "leaked_space", "not present");
  EXPECT_EQ(outcome.findings[0].range->offset, 100 * kChunk);
  expect_repair({cow(1)}, contents);
}

TEST_F(CheckTest, ManyRangesAreCountedRatherThanListed) {
  File(cow(1), O_RDWR).truncate(10000 * kChunk);
  for (uint64_t i = 0; i < 1500; ++i) fill(1, (100 + 2 * i) * kChunk, kChunk);
  const Outcome outcome = check_as(false);
  ASSERT_EQ(outcome.findings.size(), 1001U);
  EXPECT_FALSE(outcome.findings[1000].range);
  EXPECT_NE(outcome.findings[1000].what.find("500 more"), std::string::npos);
  EXPECT_EQ(outcome.result.leaked_bytes, 1500 * kChunk);
}

// ---- files --------------------------------------------------------------------------------------

TEST_F(CheckTest, AMissingCowFileIsDamage) {
  fs::remove(cow(1));
  const Outcome outcome = expect(Severity::damage, "missing_file", "layers/1.cow is missing");
  EXPECT_EQ(outcome.findings[0].image, "dom1");
  expect_no_repair();
}

TEST_F(CheckTest, ALinkInPlaceOfACowFileIsDamageAndNotFollowed) {
  write_file(directory_ / "stranger", filled(4 * kChunk, 7));
  fs::remove(cow(1));
  fs::create_symlink(directory_ / "stranger", cow(1));
  expect(Severity::damage, "missing_file", "no regular file");
  EXPECT_EQ(check_as(true).result.repaired, 0U);
  EXPECT_EQ(read_file(directory_ / "stranger"), filled(4 * kChunk, 7));
}

// What one of the two does not know is what the other has.
TEST_F(CheckTest, OfACowFileWithTwoNamesNothingIsGivenBack) {
  fill(1, 10 * kChunk, kChunk);
  fs::remove(cow(2));
  fs::create_hard_link(cow(1), cow(2));
  const auto before = files();
  const Outcome outcome = check_as(true);
  EXPECT_EQ(outcome.result.damage, 2U) << outcome.text();
  EXPECT_EQ(outcome.result.repaired, 0U);
  EXPECT_NE(outcome.text().find("damage shared_file [dom2]"), std::string::npos) << outcome.text();
  EXPECT_EQ(files(), before);
  // It is readable and takes no writes, so that a copy made by links stays what it is.
  open();
  EXPECT_EQ(error_of([&] { write(*use("dom1"), 0, pattern(1, kChunk)); }).code(), EIO);
  EXPECT_EQ(content(*use("dom1"), 0, kChunk), pattern(2, kChunk));
}

TEST_F(CheckTest, TheFolderOfTheLayersMayLieElsewhere) {
  fs::rename(store_path() + "/layers", directory_ / "elsewhere");
  fs::create_directory_symlink(directory_ / "elsewhere", store_path() + "/layers");
  EXPECT_TRUE(check_as(false).findings.empty()) << check_as(false).text();
  fs::remove(store_path() + "/layers");
  write_file(store_path() + "/layers", {});
  EXPECT_NE(check_as(false).text().find("the directory layers is missing"), std::string::npos);
}

TEST_F(CheckTest, ALeftOverCowFileIsRemoved) {
  const auto contents = all_contents();
  sql("UPDATE sqlite_sequence SET seq = 7 WHERE name = 'layer'");
  fill(5, 0, 2 * kChunk);
  const Outcome outcome = expect(Severity::leak, "left_over_file", "layers/5.cow is left over");
  EXPECT_EQ(outcome.result.leaked_bytes, 2 * kChunk);
  expect_repair({cow(5)}, contents);
  EXPECT_FALSE(fs::exists(cow(5)));
}

TEST_F(CheckTest, ACowFileThatIsNewerThanTheCatalogIsLeftAlone) {
  fill(5, 0, 2 * kChunk);
  expect(Severity::damage, "newer_file", "layers/5.cow is newer than the catalog");
  expect_no_repair();
}

// What an old copy of the catalog does not know looks like a leak.
TEST_F(CheckTest, BesideACowFileThatIsNewerNothingIsRepaired) {
  fill(5, 0, 2 * kChunk);
  fill(1, 12 * kChunk, kChunk);
  const auto before = files();
  const Outcome outcome = check_as(true);
  EXPECT_NE(outcome.text().find("nothing is repaired"), std::string::npos) << outcome.text();
  EXPECT_EQ(outcome.result.repaired, 0U);
  EXPECT_EQ(outcome.result.damage, 1U);
  EXPECT_GE(outcome.result.leaks, 1U);
  EXPECT_EQ(files(), before);
}

TEST_F(CheckTest, WhatALostLayerHeldIsNotRemoved) {
  sql("PRAGMA foreign_keys = OFF; DELETE FROM layer WHERE id = 1");
  const auto before = files();
  const Outcome outcome = check_as(true);
  EXPECT_GE(outcome.result.damage, 1U);
  EXPECT_EQ(outcome.result.repaired, 0U);
  EXPECT_EQ(files(), before);
  EXPECT_TRUE(fs::exists(cow(1)));
}

TEST_F(CheckTest, ALayerThatAnImageLostToAnotherIsNotRemoved) {
  sql("UPDATE image SET layer = 2");
  const auto before = files();
  EXPECT_EQ(check_as(true).result.repaired, 0U);
  EXPECT_EQ(files(), before);
}

TEST_F(CheckTest, ACowFileThatWasNeverFlushedIsRemoved) {
  open();
  use("dom3");
  store_.reset();
  const auto contents = all_contents();
  fill(3, 0, 2 * kChunk);
  expect(Severity::leak, "unnamed_file", "never flushed");
  expect_repair({cow(3)}, contents);
}

TEST_F(CheckTest, AMapWithDataAndNoFileIsDamageAndTheFileIsKept) {
  sql("UPDATE layer SET has_file = 0 WHERE id = 1");
  expect(Severity::damage, "missing_file", "has no CoW file");
  expect_no_repair();
}

TEST_F(CheckTest, StrangeFilesAreToldOfAndLeftAlone) {
  write_file(store_path() + "/notes.txt", filled(10, 1));
  write_file(store_path() + "/layers/1.cow.bak", filled(10, 1));
  const auto before = files();
  const Outcome outcome = check_as(true);
  EXPECT_EQ(outcome.findings.size(), 2U) << outcome.text();
  EXPECT_EQ(outcome.result.damage + outcome.result.leaks, 0U);
  EXPECT_EQ(files(), before);
}

TEST_F(CheckTest, TheReserveIsLookedAt) {
  const std::string reserve = store_path() + "/reserve";
  ASSERT_GT(allocated(reserve), 0U);
  const auto note = [&](const std::string& words) {
    const Outcome outcome = check_as(true);
    EXPECT_EQ(outcome.result.damage + outcome.result.leaks, 0U) << outcome.text();
    EXPECT_NE(outcome.text().find(words), std::string::npos) << outcome.text();
  };
  File(reserve, O_RDWR).truncate(0);
  note("note [] the reserve");
  fs::remove(reserve);
  note("note [] the reserve");
  fs::create_symlink(directory_ / "stranger", reserve);
  expect(Severity::damage, "reserve", "no regular file of its own");
  expect_no_repair();
  fs::remove(reserve);
  fs::create_directory(reserve);
  expect(Severity::damage, "reserve", "no regular file of its own");
  fs::remove(reserve);
  open();
  store_.reset();
  EXPECT_TRUE(check_as(false).findings.empty());
}

// ---- refused ------------------------------------------------------------------------------------

TEST_F(CheckTest, AStoreThatIsMountedIsRefused) {
  Store::Options mounted = options();
  mounted.mount = "/";  // a mount that is there
  store_ = std::make_unique<Store>(mounted);
  const Error error = error_of([&] { static_cast<void>(check_as(false)); });
  EXPECT_EQ(error.code(), EBUSY);
  EXPECT_NE(std::string(error.what()).find("mounted on /"), std::string::npos) << error.what();
}

TEST_F(CheckTest, WhatIsNoStoreIsRefused) {
  for (const std::string& path : {directory_ / "nowhere", base_path(), directory_.path()}) {
    const auto check = [&] { check_store(path, {.receive = [](const Finding&) {}}); };
    EXPECT_NE(error_of(check).code(), 0) << path;
  }
}

// ---- the base -----------------------------------------------------------------------------------

class CheckBaseTest : public CheckFixture {
 protected:
  void change_byte() const {
    const File file(base_path(), O_RDWR);
    Bytes byte(1);
    file.read_exactly(byte, 12345);
    byte[0] ^= std::byte{1};
    file.write(byte, 12345);
  }
  void set_mtime(int64_t seconds) const {
    const timespec times[2]{{.tv_sec = seconds, .tv_nsec = 0}, {.tv_sec = seconds, .tv_nsec = 0}};
    ASSERT_EQ(::utimensat(AT_FDCWD, base_path().c_str(), times, 0), 0);
  }
  static CheckOptions quiet() {
    return {.receive = [](const Finding&) {}};
  }
};

TEST_F(CheckBaseTest, AnotherBaseIsDamage) {
  change_byte();
  expect(Severity::damage, "base", "is not the base that this store was made for");
  expect_no_repair();
}

TEST_F(CheckBaseTest, AMissingBaseIsDamage) {
  fs::rename(base_path(), directory_ / "elsewhere");
  expect(Severity::damage, "base", base_path());
}

TEST_F(CheckBaseTest, OtherContentIsSeenThoughTheTimesAreTheSame) {
  sql("UPDATE base SET fingerprint = zeroblob(16)");
  expect(Severity::damage, "base", "though its times are the same");
}

TEST_F(CheckBaseTest, ABaseThatWasOpenedForWritingIsTold) {
  sql("UPDATE base SET written_ns = 1");
  expect(Severity::damage, "base", "opened for writing");
}

TEST_F(CheckBaseTest, ComparisonNeedsAChecksum) {
  const Error error = error_of([&] { static_cast<void>(compare_base(store_path(), {}, quiet())); });
  EXPECT_EQ(error.code(), ENODATA);
}

TEST_F(CheckBaseTest, ARecordedChecksumAcceptsABaseWithOtherTimesAndRefusesOtherContent) {
  open().record_base(quiet());
  store_.reset();
  EXPECT_TRUE(compare_base(store_path(), {}, quiet()));
  set_mtime(1000);
  sql("UPDATE base SET written_ns = 1");
  EXPECT_EQ(error_of([&] { open(); }).code(), ESTALE);
  EXPECT_TRUE(compare_base(store_path(), {}, quiet()));
  open();
  store_.reset();
  EXPECT_TRUE(check_as(false).findings.empty());
  change_byte();
  EXPECT_FALSE(compare_base(store_path(), {}, quiet()));
  EXPECT_EQ(error_of([&] { open(); }).code(), ESTALE);
}

TEST_F(CheckBaseTest, AMovedBaseIsComparedWhereItLiesNow) {
  open().record_base(quiet());
  store_.reset();
  const std::string moved = directory_ / "moved.img";
  fs::rename(base_path(), moved);
  const Error error = error_of([&] { compare_base(store_path(), {}, quiet()); });
  EXPECT_NE(std::string(error.what()).find("--base-path"), std::string::npos) << error.what();
  // Of another file nothing follows for the store.
  write_file(base_path(), pattern(7, 64 * kChunk));
  EXPECT_FALSE(compare_base(store_path(), directory_ / "base.img.cowfs/catalog.db", quiet()));
  EXPECT_TRUE(compare_base(store_path(), moved, quiet()));
  fs::remove(base_path());
  EXPECT_TRUE(check_as(false).findings.empty()) << check_as(false).text();
}

TEST_F(CheckBaseTest, WhatAFullComparisonFoundIsRemembered) {
  open().record_base(quiet());
  store_.reset();
  sql("UPDATE base SET checksum = zeroblob(length(checksum))");  // a change that no sample shows
  EXPECT_TRUE(check_as(false).findings.empty());
  EXPECT_FALSE(compare_base(store_path(), {}, quiet()));
  expect(Severity::damage, "base", "found changed by a full comparison");
  EXPECT_TRUE(open().base_written_ns());
}

TEST_F(CheckBaseTest, AnotherChecksumIsNotRecordedOverTheOneThatProvesAChange) {
  open().record_base(quiet());
  sql("UPDATE base SET checksum = zeroblob(length(checksum))");
  EXPECT_EQ(error_of([&] { store_->record_base(quiet()); }).code(), ESTALE);
  store_.reset();
  EXPECT_FALSE(compare_base(store_path(), {}, quiet()));
}

TEST_F(CheckBaseTest, NoChecksumIsRecordedOfABaseThatMayHaveChanged) {
  open();
  sql("UPDATE base SET written_ns = 1");
  EXPECT_EQ(error_of([&] { store_->record_base(quiet()); }).code(), ESTALE);
}

}  // namespace
}  // namespace cowfs::test
