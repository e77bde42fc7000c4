#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "store/check.h"
#include "store/db.h"
#include "tests/store/check_fixture.h"

namespace cowfs::test {
namespace {

namespace fs = std::filesystem;

/// What is wrong in the catalog: in its maps, in its rows, and in the database as such (I10).
class CheckCatalogTest : public CheckFixture {};

// ---- maps ---------------------------------------------------------------------------------------

TEST_F(CheckCatalogTest, MapPagesOfNoLayerAreRemoved) {
  const auto contents = all_contents();
  sql("INSERT INTO map_page SELECT 77, page, bits FROM map_page WHERE layer = 1");
  expect(Severity::leak, "orphan_map", "layer 77, which does not exist");
  expect_repair({}, contents);
}

TEST_F(CheckCatalogTest, MapPagesWhereNoImageReachesAreRemoved) {
  const auto contents = all_contents();
  sql("INSERT INTO map_page VALUES (1, -1, zeroblob(512)), (1, 1 << 40, zeroblob(512))");
  const Outcome outcome = expect(Severity::damage, "map_bounds", "2 map pages");
  EXPECT_EQ(outcome.findings[0].image, "dom1");
  expect_repair({}, contents);
}

TEST_F(CheckCatalogTest, BitsThatMeanNothingAreDamage) {
  sql("UPDATE map_page SET bits = CAST(x'ff' || substr(bits, 2) AS BLOB) WHERE layer = 2");
  const Outcome outcome = expect(Severity::damage, "bad_map", "holds no map");
  EXPECT_EQ(outcome.findings[0].image, "dom2");
  EXPECT_EQ(outcome.findings[0].range->offset, 0U);
  EXPECT_EQ(outcome.findings[0].range->length, kChunksPerPage * kChunk);
  expect_no_repair();
}

TEST_F(CheckCatalogTest, PagesOfAnotherLengthAreDamage) {
  sql("UPDATE map_page SET bits = x'00' WHERE layer = 1");
  expect(Severity::damage, "bad_map", "holds no map");
  expect_no_repair();
}

// Whether the map or the size is wrong nobody can tell but who looks at what is there.
TEST_F(CheckCatalogTest, AMapThatGoesOnBehindTheImageIsLeftForAPersonToJudge) {
  // Chunks 62 to 65 become present: two of them are behind the end.
  open();
  const Bytes more = pattern(5, 4 * kChunk);
  write(*use("dom1"), 62 * kChunk, more);
  EXPECT_TRUE(store_->close());
  const Bytes whole = content(*use("dom1"));
  store_.reset();
  sql("UPDATE image SET size = " + std::to_string(64 * kChunk) + " WHERE name = 'dom1'");
  fill(1, 70 * kChunk, kChunk);  // looks like a leak
  fill(2, 70 * kChunk, kChunk);  // is one
  const auto before = files();
  const Outcome outcome = check_as(false);
  EXPECT_EQ(files(), before);
  EXPECT_EQ(outcome.result.damage, 1U) << outcome.text();
  EXPECT_EQ(outcome.result.leaks, 2U) << outcome.text();
  EXPECT_NE(outcome.text().find("map_behind_end [dom1]"), std::string::npos) << outcome.text();
  EXPECT_NE(outcome.text().find("chunks from 262144 on"), std::string::npos) << outcome.text();

  const Outcome repair = check_as(true);
  EXPECT_EQ(repair.result.repaired, 1U) << repair.text();
  EXPECT_EQ(repair.result.damage, 1U) << repair.text();
  EXPECT_EQ(read_file(cow(1)), before.at(cow(1)));

  // The one who grows the image finds all of it, and who shrinks it again is rid of the damage.
  open();
  use("dom1")->resize(66 * kChunk);
  EXPECT_EQ(content(*use("dom1")), whole);
  use("dom1")->resize(64 * kChunk);
  EXPECT_TRUE(store_->close());
  store_.reset();
  EXPECT_EQ(check_as(true).result.damage, 0U);
  open();
  use("dom1")->resize(70 * kChunk);
  EXPECT_EQ(content(*use("dom1"), 64 * kChunk, 6 * kChunk), filled(6 * kChunk, 0));
}

// ---- rows ---------------------------------------------------------------------------------------

TEST_F(CheckCatalogTest, AMissingLayerIsDamage) {
  sql("DELETE FROM map_page WHERE layer = 2; DELETE FROM layer WHERE id = 2; DELETE FROM image "
      "WHERE id = 3; UPDATE image SET layer = 3 WHERE id = 2; DELETE FROM map_page; DELETE FROM "
      "layer; UPDATE sqlite_sequence SET seq = 0 WHERE name = 'layer'");
  fs::remove(cow(1));
  fs::remove(cow(2));
  const Outcome outcome = expect(Severity::damage, "no_layer", "layer 3 is missing");
  EXPECT_EQ(outcome.findings[0].image, "dom1");
  expect_no_repair();
}

TEST_F(CheckCatalogTest, TwoImagesOnOneLayerAreDamage) {
  sql("INSERT INTO image SELECT 9, 'dom9', layer, size, mode, uid, gid, atime_ns, mtime_ns, "
      "ctime_ns, btime_ns, NULL FROM image WHERE name = 'dom1'");
  const Outcome outcome = expect(Severity::damage, "shared_layer", "same layer as dom1");
  EXPECT_EQ(outcome.findings[0].image, "dom9");
  expect_no_repair();
}

TEST_F(CheckCatalogTest, ALayerOfNoImageIsRemovedWithItsFile) {
  auto contents = all_contents();
  sql("DELETE FROM image WHERE name = 'dom2'");
  contents.erase("dom2");
  expect(Severity::leak, "orphan_layer", "layer 2 belongs to no image");
  expect_repair({cow(2)}, contents);
  EXPECT_FALSE(fs::exists(cow(2)));
}

TEST_F(CheckCatalogTest, AnImageWithoutANameIsFreed) {
  auto contents = all_contents();
  sql("UPDATE image SET name = NULL WHERE name = 'dom2'");
  contents.erase("dom2");
  expect(Severity::leak, "unlinked_image", "removed while it was in use");
  expect_repair({cow(2)}, contents);
  EXPECT_FALSE(fs::exists(cow(2)));
}

TEST_F(CheckCatalogTest, ValuesThatCannotBeAreDamage) {
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
           Case{"UPDATE layer SET has_file = 7 WHERE id = 1", "UPDATE layer SET has_file = 1",
                "neither 0 nor 1"},
           Case{"UPDATE store SET uuid = 'zz'",
                "UPDATE store SET uuid = '01234567-89ab-4def-8123-456789abcdef'", "no UUID"},
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

TEST_F(CheckCatalogTest, ACatalogWithoutConditionsOnWhatIsFixedIsValid) {
  sql(kStoreWithoutConditions);
  const auto contents = all_contents();
  EXPECT_TRUE(check_as(false).findings.empty());
  sql("UPDATE store SET chunk_size = 5000");
  expect(Severity::damage, "catalog_rows", "chunks of 5000");
  EXPECT_EQ(error_of([&] { open(); }).code(), EUCLEAN);
  sql("UPDATE store SET chunk_size = 4096, policy = 'magic'");
  expect(Severity::damage, "catalog_rows", "'magic'");
  expect_no_repair();
}

TEST_F(CheckCatalogTest, ModeBitsThatAreNoPermissionsAreTakenAway) {
  const auto contents = all_contents();
  sql("UPDATE image SET mode = 2468 WHERE name = 'dom1'");
  expect(Severity::damage, "catalog_rows", "no permissions");
  expect_repair({}, contents);
}

TEST_F(CheckCatalogTest, ANameThatNoImageCanHaveIsReplaced) {
  auto contents = all_contents();
  sql("UPDATE image SET name = '../etc/passwd' WHERE name = 'dom1'");
  contents["recovered-2"] = contents["dom1"];
  contents.erase("dom1");
  expect(Severity::damage, "catalog_rows", "its name is none");
  expect_repair({}, contents);
}

TEST_F(CheckCatalogTest, ANameThatNoImageCanHaveGetsOneThatIsFree) {
  sql("UPDATE image SET name = 'a/b' WHERE id = 2; UPDATE image SET name = 'recovered-2' WHERE id "
      "= "
      "3");
  EXPECT_EQ(check_as(true).result.repaired, 1U);
  const auto contents = all_contents();
  EXPECT_TRUE(contents.contains("recovered-2"));
  EXPECT_TRUE(contents.contains("recovered-2.2"));
}

TEST_F(CheckCatalogTest, ASizeBelowWhatShowsOfTheBaseIsLeftForAPersonToJudge) {
  const auto contents = all_contents();
  sql("UPDATE image SET size = " + std::to_string(32 * kChunk) + " WHERE name = 'dom1'");
  expect(Severity::damage, "limit_behind_end",
         "ends at 131072 bytes and shows the base up to 262144");
  expect_no_repair();
  open();
  use("dom1")->resize(64 * kChunk);
  EXPECT_TRUE(store_->close());
  store_.reset();
  EXPECT_TRUE(check_as(false).findings.empty());
  EXPECT_EQ(all_contents(), contents);
}

TEST_F(CheckCatalogTest, NumbersThatWouldBeGivenAgainAreNot) {
  const auto contents = all_contents();
  sql("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'layer'");
  expect(Severity::damage, "catalog_rows", "last number given in table layer");
  expect_repair({}, contents);
  for (const char* seq : {"'x'", "9223372036854775807"}) {
    sql(std::string("UPDATE sqlite_sequence SET seq = ") + seq + " WHERE name = 'layer'");
    expect(Severity::damage, "catalog_rows", "last number given in table layer");
    EXPECT_EQ(all_contents(), contents) << "a mount does not mind";
    expect_repair({}, contents);
  }
  sql("DELETE FROM sqlite_sequence WHERE name = 'image'");
  expect(Severity::damage, "catalog_rows", "last number given in table image");
  EXPECT_EQ(all_contents(), contents) << "a mount does not mind";
  expect_repair({}, contents);
}

// Another chunk size would show every image wrong, and most of its space as leaks.
TEST_F(CheckCatalogTest, AnotherChunkSizeOrPolicyIsRefused) {
  for (const std::string what : {"chunk_size = 8192", "policy = 'pool'"}) {
    EXPECT_NE(error_of([&] { sql("UPDATE store SET " + what); }).code(), 0);
    sql("PRAGMA ignore_check_constraints = ON; UPDATE store SET " + what);
    const auto before = files();
    const Outcome outcome = check_as(true);
    EXPECT_EQ(outcome.result.damage, 1U) << outcome.text();
    EXPECT_EQ(outcome.result.repaired, 0U);
    EXPECT_NE(outcome.text().find("CHECK"), std::string::npos) << outcome.text();
    EXPECT_EQ(files(), before);
    EXPECT_EQ(error_of([&] { open(); }).code(), EUCLEAN);
    sql("PRAGMA ignore_check_constraints = ON; UPDATE store SET chunk_size = 4096, policy = "
        "'sparse'");
  }
  EXPECT_TRUE(check_as(false).findings.empty());
}

TEST_F(CheckCatalogTest, AFailedImageIsToldWithTheReason) {
  sql("UPDATE layer SET failure = 'fdatasync said no' WHERE id = 1");
  const Outcome outcome = expect(Severity::damage, "failed_image", "fdatasync said no");
  EXPECT_EQ(outcome.findings[0].image, "dom1");
  EXPECT_NE(outcome.findings[0].remedy.find("--clear"), std::string::npos);
  expect_no_repair();
}

// ---- the catalog as a file (I10) ----------------------------------------------------------------

TEST_F(CheckCatalogTest, ACatalogThatIsNoDatabaseIsDamage) {
  write_file(catalog_path(), pattern(6, 9000));
  expect(Severity::damage, "catalog", "is not a SQLite file");
  expect_no_repair();
}

TEST_F(CheckCatalogTest, AMissingCatalogIsDamage) {
  fs::remove(catalog_path());
  expect(Severity::damage, "catalog", "catalog.db is missing");
  expect_no_repair();
}

TEST_F(CheckCatalogTest, AnEmptyCatalogBesideCowFilesIsDamage) {
  write_file(catalog_path(), {});
  expect(Severity::damage, "catalog", "catalog.db is empty");
  expect_no_repair();
}

TEST_F(CheckCatalogTest, ATruncatedCatalogIsDamage) {
  File(catalog_path(), O_RDWR).truncate(8192);
  expect(Severity::damage, "catalog", "cut short");
  expect_no_repair();
}

// A check finds each, and so does who opens the store: it would write over what is left.
TEST_F(CheckCatalogTest, WhatCannotBeIsNotOpened) {
  struct Case {
    const char* set;
    const char* reset;
  };
  for (const Case& each : {
           Case{"UPDATE image SET size = 'abc' WHERE id = 2", "UPDATE image SET size = 262144"},
           Case{"UPDATE image SET size = 4096.5 WHERE id = 2", "UPDATE image SET size = 262144"},
           Case{"UPDATE image SET uid = -1 WHERE id = 2", "UPDATE image SET uid = 0"},
           Case{"UPDATE image SET gid = 1 << 32 WHERE id = 2", "UPDATE image SET gid = 0"},
           Case{"UPDATE image SET space_limit = -5 WHERE id = 2",
                "UPDATE image SET space_limit = NULL"},
           Case{"UPDATE image SET mtime_ns = 'now' WHERE id = 2", "UPDATE image SET mtime_ns = 0"},
           Case{"UPDATE layer SET has_file = 7 WHERE id = 1", "UPDATE layer SET has_file = 1"},
           Case{"UPDATE layer SET has_file = 0 WHERE id = 1", "UPDATE layer SET has_file = 1"},
           Case{"UPDATE base SET checksum = x'00'", "UPDATE base SET checksum = NULL"},
           Case{"PRAGMA ignore_check_constraints = ON; INSERT INTO base SELECT 2, path, device, "
                "inode, size, mtime_ns, ctime_ns, fingerprint, checksum, written_ns, format, "
                "snapshot, "
                "virtual_size FROM base",
                "DELETE FROM base WHERE id = 2"},
           Case{"UPDATE base SET format = 'vmdk'", "UPDATE base SET format = 'raw'"},
           Case{"INSERT INTO backing VALUES (2, '/b', 'raw', 1, 2, 3, 4, 5, zeroblob(16))",
                "DELETE FROM backing"},
           Case{"INSERT INTO backing VALUES (1, '/b', x'', 1, 2, 3, 4, 5, zeroblob(16))",
                "DELETE FROM backing"},
       }) {
    sql(each.set);
    EXPECT_EQ(check_as(false).result.damage, 1U) << each.set << "\n" << check_as(false).text();
    EXPECT_EQ(error_of([&] { open(); }).code(), EUCLEAN) << each.set;
    store_.reset();
    sql(each.reset);
  }
  EXPECT_TRUE(check_as(false).findings.empty()) << check_as(false).text();
}

TEST_F(CheckCatalogTest, APipeInPlaceOfTheCatalogHangsNothing) {
  fs::remove(catalog_path());
  ASSERT_EQ(::mkfifo(catalog_path().c_str(), 0600), 0);
  const Outcome outcome = check_as(false);
  EXPECT_NE(outcome.text().find("no regular file"), std::string::npos) << outcome.text();
  EXPECT_EQ(error_of([&] { open(); }).code(), EINVAL);
}

TEST_F(CheckCatalogTest, AStrangeSchemaIsDamageAndEndsTheCheckThere) {
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

TEST_F(CheckCatalogTest, SpoiledPagesOfTheCatalogLeadToFindings) {
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

TEST_F(CheckCatalogTest, ANewerFormatIsNotChecked) {
  sql("PRAGMA user_version = 99");
  EXPECT_EQ(error_of([&] { static_cast<void>(check_as(false)); }).code(), EPROTONOSUPPORT);
}

TEST_F(CheckCatalogTest, TheCatalogIsSavedBeforeEachRepairOfIt) {
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

}  // namespace
}  // namespace cowfs::test
