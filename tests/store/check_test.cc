#include "store/check.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <map>
#include <random>
#include <thread>

#include "store/check_base.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

namespace fs = std::filesystem;
using Severity = Finding::Severity;

struct Outcome {
  CheckResult result;
  std::vector<Finding> findings;

  [[nodiscard]] std::string text() const {
    std::string all;
    for (const Finding& finding : findings) {
      all += std::string(name_of(finding.severity)) + " " + finding.kind + " [" + finding.image +
             "] " + finding.what + "\n";
    }
    return all;
  }
};

/// Two images with data at [0, 8), [16, 20) chunks, and a trimmed part at [4, 6).
class CheckTest : public StoreFixture {
 protected:
  void SetUp() override {
    make_base(pattern(1, 64 * kChunk));
    open();
    for (const char* name : {"dom1", "dom2"}) {
      const Image::Use image = use(name);
      write(*image, 0, pattern(2, 8 * kChunk));
      write(*image, 16 * kChunk, pattern(3, 4 * kChunk));
      image->make_zero(4 * kChunk, 2 * kChunk);
      image->flush();
    }
    EXPECT_TRUE(store_->close());
    store_.reset();
  }

  void sql(const std::string& text) const { run_sql(catalog_path(), text); }
  [[nodiscard]] std::string cow(uint64_t layer) const {
    return store_path() + "/layers/" + std::to_string(layer) + ".cow";
  }
  void punch(uint64_t layer, uint64_t offset, uint64_t length) const {
    File(cow(layer), O_RDWR).punch(offset, length);
  }
  void fill(uint64_t layer, uint64_t offset, uint64_t length) const {
    File(cow(layer), O_RDWR | O_CREAT, 0600).write(pattern(9, length), offset);
  }

  [[nodiscard]] Outcome check_as(bool repair) const {
    Outcome outcome;
    outcome.result =
        check_store(store_path(), {.repair = repair, .receive = [&](const Finding& finding) {
                                     outcome.findings.push_back(finding);
                                   }});
    return outcome;
  }

  /// Everything in the store but what the lock says.
  [[nodiscard]] std::map<std::string, Bytes> files() const {
    std::map<std::string, Bytes> all;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(store_path())) {
      if (entry.path().filename() == "lock" || !entry.is_regular_file()) continue;
      all.emplace(entry.path().string(), read_file(entry.path()));
    }
    return all;
  }

  /// A check without repair finds just this, and changes nothing.
  Outcome expect(Severity severity, const std::string& kind, const std::string& words) const {
    const auto before = files();
    Outcome outcome = check_as(false);
    EXPECT_EQ(files(), before);
    EXPECT_EQ(outcome.findings.size(), 1U) << outcome.text();
    if (outcome.findings.empty()) return outcome;
    const Finding& finding = outcome.findings[0];
    EXPECT_EQ(name_of(finding.severity), name_of(severity)) << outcome.text();
    EXPECT_EQ(finding.kind, kind) << outcome.text();
    EXPECT_NE(finding.what.find(words), std::string::npos) << outcome.text();
    EXPECT_FALSE(finding.repaired);
    EXPECT_FALSE(finding.remedy.empty());
    EXPECT_EQ(outcome.result.damage, severity == Severity::damage ? 1U : 0U);
    EXPECT_EQ(outcome.result.leaks, severity == Severity::leak ? 1U : 0U);
    return outcome;
  }

  /// A repair changes nothing, and says so.
  void expect_no_repair() const {
    const auto before = files();
    const Outcome outcome = check_as(true);
    EXPECT_EQ(files(), before);
    EXPECT_EQ(outcome.result.repaired, 0U);
    EXPECT_EQ(outcome.result.damage, 1U) << outcome.text();
  }

  /// A repair mends it, leaves the files `touched` alone changed besides the catalog, every image's
  /// content as `contents` has it, and nothing to be found afterwards.
  void expect_repair(const std::vector<std::string>& touched,
                     const std::map<std::string, Bytes>& contents) {
    const auto before = files();
    const Outcome outcome = check_as(true);
    EXPECT_GE(outcome.result.repaired, 1U) << outcome.text();
    EXPECT_EQ(outcome.result.damage + outcome.result.leaks, 0U) << outcome.text();
    for (const auto& [path, bytes] : before) {
      const bool may_change = path.find("catalog.db") != std::string::npos ||
                              std::find(touched.begin(), touched.end(), path) != touched.end();
      if (may_change) continue;
      EXPECT_TRUE(fs::exists(path)) << path;
      if (fs::exists(path)) {
        EXPECT_EQ(read_file(path), bytes) << path;
      }
    }
    const Outcome again = check_as(false);
    EXPECT_EQ(again.result.damage + again.result.leaks, 0U) << again.text();
    EXPECT_EQ(all_contents(), contents);
  }

  /// Of every image, through the ordinary code.
  std::map<std::string, Bytes> all_contents() {
    std::map<std::string, Bytes> all;
    open();
    for (const Store::Entry& entry : store_->list(0, 100)) {
      all.emplace(entry.name, content(*entry.image->use()));
    }
    store_.reset();
    return all;
  }
};

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

// ---- maps ---------------------------------------------------------------------------------------

TEST_F(CheckTest, MapPagesOfNoLayerAreRemoved) {
  const auto contents = all_contents();
  sql("INSERT INTO map_page SELECT 77, page, bits FROM map_page WHERE layer = 1");
  expect(Severity::leak, "orphan_map", "layer 77, which does not exist");
  expect_repair({}, contents);
}

TEST_F(CheckTest, MapPagesWhereNoImageReachesAreRemoved) {
  const auto contents = all_contents();
  sql("INSERT INTO map_page VALUES (1, -1, zeroblob(512)), (1, 1 << 40, zeroblob(512))");
  const Outcome outcome = expect(Severity::damage, "map_bounds", "2 map pages");
  EXPECT_EQ(outcome.findings[0].image, "dom1");
  expect_repair({}, contents);
}

TEST_F(CheckTest, BitsThatMeanNothingAreDamage) {
  sql("UPDATE map_page SET bits = CAST(x'ff' || substr(bits, 2) AS BLOB) WHERE layer = 2");
  const Outcome outcome = expect(Severity::damage, "bad_map", "holds no map");
  EXPECT_EQ(outcome.findings[0].image, "dom2");
  EXPECT_EQ(outcome.findings[0].range->offset, 0U);
  EXPECT_EQ(outcome.findings[0].range->length, kChunksPerPage * kChunk);
  expect_no_repair();
}

TEST_F(CheckTest, PagesOfAnotherLengthAreDamage) {
  sql("UPDATE map_page SET bits = x'00' WHERE layer = 1");
  expect(Severity::damage, "bad_map", "holds no map");
  expect_no_repair();
}

TEST_F(CheckTest, AMapThatGoesOnBehindTheImageIsCut) {
  const auto contents = all_contents();
  // Chunks 62 to 65 become present: two of them are behind the end.
  open();
  write(*use("dom1"), 62 * kChunk, content(*use("dom1"), 62 * kChunk, 2 * kChunk));
  write(*use("dom1"), 64 * kChunk, pattern(5, 2 * kChunk));
  EXPECT_TRUE(store_->close());
  store_.reset();
  sql("UPDATE image SET size = " + std::to_string(64 * kChunk) + " WHERE name = 'dom1'");
  const Outcome outcome = expect(Severity::leak, "map_behind_end", "chunks from 262144 on");
  EXPECT_EQ(outcome.findings[0].image, "dom1");
  expect_repair({cow(1)}, contents);
  open();
  use("dom1")->resize(70 * kChunk);
  EXPECT_EQ(content(*use("dom1"), 64 * kChunk, 6 * kChunk), filled(6 * kChunk, 0));
}

// ---- rows ---------------------------------------------------------------------------------------

TEST_F(CheckTest, AMissingLayerIsDamage) {
  sql("DELETE FROM map_page WHERE layer = 2; DELETE FROM layer WHERE id = 2; DELETE FROM image "
      "WHERE id = 3; UPDATE image SET layer = 3 WHERE id = 2; DELETE FROM map_page; DELETE FROM "
      "layer; UPDATE sqlite_sequence SET seq = 0 WHERE name = 'layer'");
  fs::remove(cow(1));
  fs::remove(cow(2));
  const Outcome outcome = expect(Severity::damage, "no_layer", "layer 3 is missing");
  EXPECT_EQ(outcome.findings[0].image, "dom1");
  expect_no_repair();
}

TEST_F(CheckTest, TwoImagesOnOneLayerAreDamage) {
  sql("INSERT INTO image SELECT 9, 'dom9', layer, size, mode, uid, gid, atime_ns, mtime_ns, "
      "ctime_ns, btime_ns, NULL FROM image WHERE name = 'dom1'");
  const Outcome outcome = expect(Severity::damage, "shared_layer", "same layer as dom1");
  EXPECT_EQ(outcome.findings[0].image, "dom9");
  expect_no_repair();
}

TEST_F(CheckTest, ALayerOfNoImageIsRemovedWithItsFile) {
  auto contents = all_contents();
  sql("DELETE FROM image WHERE name = 'dom2'");
  contents.erase("dom2");
  expect(Severity::leak, "orphan_layer", "layer 2 belongs to no image");
  expect_repair({cow(2)}, contents);
  EXPECT_FALSE(fs::exists(cow(2)));
}

TEST_F(CheckTest, AnImageWithoutANameIsFreed) {
  auto contents = all_contents();
  sql("UPDATE image SET name = NULL WHERE name = 'dom2'");
  contents.erase("dom2");
  expect(Severity::leak, "unlinked_image", "removed while it was in use");
  expect_repair({cow(2)}, contents);
  EXPECT_FALSE(fs::exists(cow(2)));
}

TEST_F(CheckTest, ValuesThatCannotBeAreDamage) {
  struct Case {
    const char* set;
    const char* reset;
    const char* words;
  };
  for (const Case& each : {
           Case{"UPDATE image SET size = -1 WHERE id = 2", "UPDATE image SET size = 262144",
                "its size"},
           Case{"UPDATE image SET uid = -1 WHERE id = 2", "UPDATE image SET uid = 0", "owner"},
           Case{"UPDATE layer SET parent_limit = 1 << 60 WHERE id = 1",
                "UPDATE layer SET parent_limit = 262144", "parent limit"},
           Case{"UPDATE layer SET parent = 1 WHERE id = 2", "UPDATE layer SET parent = NULL",
                "over another layer"},
           Case{"UPDATE image SET size = 'big' WHERE id = 2", "UPDATE image SET size = 262144",
                "column size"},
           Case{"UPDATE store SET chunk_size = 5000", "UPDATE store SET chunk_size = 4096",
                "chunks of 5000"},
           Case{"UPDATE store SET policy = 'magic'", "UPDATE store SET policy = 'sparse'",
                "'magic'"},
           Case{"UPDATE base SET fingerprint = x'00'", "SELECT 1", "table base"},
       }) {
    sql(each.set);
    const Outcome outcome = check_as(true);
    EXPECT_GE(outcome.result.damage, 1U) << each.set;
    EXPECT_EQ(outcome.result.repaired, 0U) << each.set;
    EXPECT_NE(outcome.text().find(each.words), std::string::npos) << outcome.text();
    sql(each.reset);
  }
}

TEST_F(CheckTest, ModeBitsThatAreNoPermissionsAreTakenAway) {
  const auto contents = all_contents();
  sql("UPDATE image SET mode = 2468 WHERE name = 'dom1'");
  expect(Severity::damage, "catalog_rows", "no permissions");
  expect_repair({}, contents);
}

TEST_F(CheckTest, ANameThatNoImageCanHaveIsReplaced) {
  auto contents = all_contents();
  sql("UPDATE image SET name = '../etc/passwd' WHERE name = 'dom1'");
  contents["recovered-2"] = contents["dom1"];
  contents.erase("dom1");
  expect(Severity::damage, "catalog_rows", "its name is none");
  expect_repair({}, contents);
}

TEST_F(CheckTest, AParentLimitBehindTheEndIsLowered) {
  const auto contents = all_contents();
  sql("UPDATE layer SET parent_limit = " + std::to_string(80 * kChunk) + " WHERE id = 1");
  expect(Severity::damage, "catalog_rows", "behind its end");
  expect_repair({}, contents);
}

TEST_F(CheckTest, AFailedImageIsToldWithTheReason) {
  sql("UPDATE layer SET failure = 'fdatasync said no' WHERE id = 1");
  const Outcome outcome = expect(Severity::damage, "failed_image", "fdatasync said no");
  EXPECT_EQ(outcome.findings[0].image, "dom1");
  EXPECT_NE(outcome.findings[0].remedy.find("--clear"), std::string::npos);
  expect_no_repair();
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

// ---- the catalog as a file (I10) ----------------------------------------------------------------

TEST_F(CheckTest, ACatalogThatIsNoDatabaseIsDamage) {
  write_file(catalog_path(), pattern(6, 9000));
  expect(Severity::damage, "catalog", "is not a SQLite file");
  expect_no_repair();
}

TEST_F(CheckTest, AMissingCatalogIsDamage) {
  fs::remove(catalog_path());
  expect(Severity::damage, "catalog", "catalog.db is missing");
  expect_no_repair();
}

TEST_F(CheckTest, AnEmptyCatalogBesideCowFilesIsDamage) {
  write_file(catalog_path(), {});
  expect(Severity::damage, "catalog", "catalog.db is empty");
  expect_no_repair();
}

TEST_F(CheckTest, ATruncatedCatalogIsDamage) {
  File(catalog_path(), O_RDWR).truncate(8192);
  expect(Severity::damage, "catalog", "cut short");
  expect_no_repair();
}

TEST_F(CheckTest, APipeInPlaceOfTheCatalogHangsNothing) {
  fs::remove(catalog_path());
  ASSERT_EQ(::mkfifo(catalog_path().c_str(), 0600), 0);
  const Outcome outcome = check_as(false);
  EXPECT_NE(outcome.text().find("no regular file"), std::string::npos) << outcome.text();
}

TEST_F(CheckTest, AStrangeSchemaIsDamageAndEndsTheCheckThere) {
  for (const auto& [make, words, undo] : std::vector<std::array<std::string, 3>>{
           {"CREATE TRIGGER t AFTER DELETE ON image BEGIN DELETE FROM layer; END",
            "tables only, and 't' is none", "DROP TRIGGER t"},
           {"CREATE TABLE extra (id INTEGER)", "strange table extra", "DROP TABLE extra"},
           {"ALTER TABLE image ADD COLUMN more TEXT", "columns of its table image",
            "ALTER TABLE image DROP COLUMN more"},
           {"ALTER TABLE map_page RENAME TO old; CREATE VIEW map_page AS SELECT * FROM old",
            "tables only, and 'map_page' is none",
            "DROP VIEW map_page; ALTER TABLE old RENAME TO map_page"}}) {
    sql(make);
    const Outcome outcome = check_as(true);
    EXPECT_GE(outcome.result.damage, 1U) << make;
    EXPECT_EQ(outcome.result.repaired, 0U) << make;
    EXPECT_NE(outcome.text().find(words), std::string::npos) << outcome.text();
    sql(undo);
  }
  EXPECT_TRUE(check_as(false).findings.empty());
}

TEST_F(CheckTest, SpoiledPagesOfTheCatalogLeadToFindings) {
  const Bytes whole = read_file(catalog_path());
  std::mt19937_64 random(7);
  for (int round = 0; round < 60; ++round) {
    Bytes spoiled = whole;
    for (int i = 0; i < 8; ++i) {
      // The first page's header is another test's.
      spoiled[100 + random() % (spoiled.size() - 100)] = static_cast<std::byte>(random());
    }
    write_file(catalog_path(), spoiled);
    try {
      static_cast<void>(check_as(false));
      EXPECT_EQ(read_file(catalog_path()), spoiled);
    } catch (const Error&) {
      // Could not be checked, said so.
    }
  }
}

TEST_F(CheckTest, ANewerFormatIsNotChecked) {
  sql("PRAGMA user_version = 99");
  EXPECT_EQ(error_of([&] { static_cast<void>(check_as(false)); }).code(), EPROTONOSUPPORT);
}

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

TEST_F(CheckTest, TheCatalogIsSavedBeforeEachRepairOfIt) {
  const Bytes saved = filled(3, 3);
  write_file(catalog_path() + ".before-repair", saved);
  sql("INSERT INTO map_page VALUES (77, 0, zeroblob(512))");
  EXPECT_EQ(check_as(true).result.repaired, 1U);
  EXPECT_EQ(read_file(catalog_path() + ".before-repair"), saved);
  const std::string copy = catalog_path() + ".before-repair.2";
  struct stat status {};
  ASSERT_EQ(::stat(copy.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  Database database(copy, Database::Mode::read_only);
  Statement count = database.prepare("SELECT count(*) FROM map_page WHERE layer = 77");
  ASSERT_TRUE(count.step());
  EXPECT_EQ(count.integer(0), 1);
}

// ---- the base -----------------------------------------------------------------------------------

class CheckBaseTest : public CheckTest {
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
  const Error error = error_of([&] { static_cast<void>(compare_base(store_path(), quiet())); });
  EXPECT_EQ(error.code(), ENODATA);
}

TEST_F(CheckBaseTest, ARecordedChecksumAcceptsABaseWithOtherTimesAndRefusesOtherContent) {
  open().record_base(quiet());
  store_.reset();
  EXPECT_TRUE(compare_base(store_path(), quiet()));
  set_mtime(1000);
  sql("UPDATE base SET written_ns = 1");
  EXPECT_EQ(error_of([&] { open(); }).code(), ESTALE);
  EXPECT_TRUE(compare_base(store_path(), quiet()));
  open();
  store_.reset();
  EXPECT_TRUE(check_as(false).findings.empty());
  change_byte();
  EXPECT_FALSE(compare_base(store_path(), quiet()));
  EXPECT_EQ(error_of([&] { open(); }).code(), ESTALE);
}

TEST_F(CheckBaseTest, NoChecksumIsRecordedOfABaseThatMayHaveChanged) {
  open();
  sql("UPDATE base SET written_ns = 1");
  EXPECT_EQ(error_of([&] { store_->record_base(quiet()); }).code(), ESTALE);
}

// ---- in use -------------------------------------------------------------------------------------

class CheckInUseTest : public CheckTest {
 protected:
  std::shared_ptr<Image> make(const std::string& name) {
    Store::NewImage wanted;
    wanted.name = name;
    return store_->create(wanted);
  }
  Outcome check_in_use(bool repair = false) {
    Outcome outcome;
    outcome.result = store_->check({.repair = repair, .receive = [&](const Finding& finding) {
                                      outcome.findings.push_back(finding);
                                    }});
    return outcome;
  }
};

TEST_F(CheckInUseTest, WhatIsWrongIsFoundAndLeaksAreRepaired) {
  open();
  const Image::Use image = use("dom1");
  punch(1, 2 * kChunk, kChunk);
  fill(1, 10 * kChunk, kChunk);
  sql("INSERT INTO map_page VALUES (77, 0, zeroblob(512)); UPDATE sqlite_sequence SET seq = 9");
  fill(5, 0, kChunk);
  const Outcome outcome = check_in_use();
  EXPECT_EQ(outcome.result.damage, 1U) << outcome.text();
  EXPECT_EQ(outcome.result.leaks, 3U) << outcome.text();
  const Bytes before = content(*image);
  EXPECT_EQ(check_in_use(true).result.repaired, 3U);
  const Outcome again = check_in_use();
  ASSERT_EQ(again.findings.size(), 1U) << again.text();
  EXPECT_EQ(again.findings[0].kind, "lost_data");
  EXPECT_EQ(again.findings[0].range->offset, 2 * kChunk);
  EXPECT_EQ(content(*image), before);
}

TEST_F(CheckInUseTest, ACowFileThatIsGoneIsDamage) {
  open();
  const Image::Use image = use("dom1");
  fs::remove(cow(1));
  fs::remove(cow(2));
  const Outcome outcome = check_in_use();
  EXPECT_EQ(outcome.result.damage, 2U) << outcome.text();
}

// Trims that wait for their commit, and spaces that wait to be given back after it, are no leaks.
TEST_F(CheckInUseTest, WhatIsTrimmedIsNoLeakBeforeAndAfterItsCommit) {
  open();
  const Image::Use image = use("dom1");
  image->make_zero(16 * kChunk, 2 * kChunk);
  EXPECT_TRUE(check_in_use().findings.empty());
  std::atomic<bool> committed = false;
  std::atomic<bool> go_on = false;
  faults_.set([&](const std::string&, FileOperation operation, uint64_t, uint64_t) {
    if (operation == FileOperation::punch && !committed.exchange(true)) {
      while (!go_on) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return 0;
  });
  // Two ranges: while the first is punched the second waits, and neither is in a commit any more.
  image->make_zero(0, kChunk);
  std::thread flusher([&] { image->flush(); });
  while (!committed) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  Outcome outcome;
  std::thread checker([&] { outcome = check_in_use(); });
  // The checker may wait for the chunk that is being punched.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  go_on = true;
  flusher.join();
  checker.join();
  EXPECT_TRUE(outcome.findings.empty()) << outcome.text();
}

TEST_F(CheckInUseTest, NoFalseAlarmWhileImagesAreWrittenTrimmedResizedAndMade) {
  open();
  constexpr int kImages = 6;
  std::atomic<bool> stop = false;
  std::vector<std::thread> guests;
  for (int i = 0; i < kImages; ++i) {
    guests.emplace_back([&, i] {
      std::mt19937_64 random(static_cast<uint64_t>(i));
      const std::string name = "guest" + std::to_string(i);
      make(name);
      while (!stop) {
        const Image::Use image = store_->find(name)->use();
        for (int n = 0; n < 50; ++n) {
          const uint64_t at = random() % 60 * kChunk;
          const uint64_t length = (1 + random() % 8) * kChunk;
          switch (random() % 8) {
            case 0:
              image->flush();
              break;
            case 1:
              image->resize((20 + random() % 60) * kChunk);
              break;
            case 2:
            case 3:
              image->make_zero(at, length);
              break;
            default:
              write(*image, at, pattern(random(), length));
          }
        }
        const std::string other = name + "x";
        write(*make(other)->use(), 0, pattern(1, kChunk));
        store_->remove(other);
      }
    });
  }
  for (int round = 0; round < 15; ++round) {
    const Outcome outcome = check_in_use(round % 3 == 2);
    EXPECT_TRUE(outcome.findings.empty()) << outcome.text();
  }
  stop = true;
  for (std::thread& guest : guests) guest.join();
  EXPECT_TRUE(check_in_use().findings.empty());
}

}  // namespace
}  // namespace cowfs::test
