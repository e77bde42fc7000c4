#include "store/schema.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <filesystem>

#include "store/catalog.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

constexpr std::array kSteps{
    Migration{.from = 1, .sql = "ALTER TABLE image ADD COLUMN note TEXT"},
    Migration{.from = 2, .sql = "ALTER TABLE image ADD COLUMN more TEXT"},
};

Schema version(int number) {
  Schema schema = current_schema();
  schema.version = number;
  schema.migrations = kSteps;
  return schema;
}

const Fixed kFixed{.chunk_size = 4096, .policy = "sparse"};

class SchemaTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::string path() const { return directory_ / "catalog.db"; }
  void make(const Schema& schema = version(1)) const {
    Database database(path(), Database::Mode::create);
    Transaction transaction(database);
    create_schema(database, schema, kFixed);
    transaction.commit();
  }
  [[nodiscard]] Database open() const { return {path(), Database::Mode::read_write}; }
  TempDir directory_;
};

TEST_F(SchemaTest, FreshDatabaseIsBlankAndNoCatalog) {
  Database database(path(), Database::Mode::create);
  EXPECT_TRUE(is_blank(database));
  EXPECT_EQ(error_of([&] { upgrade_schema(database, current_schema()); }).code(), EINVAL);
  EXPECT_EQ(error_of([&] { require_schema(database, current_schema()); }).code(), EINVAL);
}

TEST_F(SchemaTest, MakingThatIsCutShortLeavesItBlank) {
  {
    Database database(path(), Database::Mode::create);
    Transaction transaction(database);
    create_schema(database, current_schema(), kFixed);
  }
  Database database = open();
  EXPECT_TRUE(is_blank(database));
}

TEST_F(SchemaTest, MadeOneIsAccepted) {
  make(current_schema());
  Database database = open();
  EXPECT_FALSE(is_blank(database));
  EXPECT_FALSE(upgrade_schema(database, current_schema()));
  EXPECT_NO_THROW(require_schema(database, current_schema()));
  EXPECT_EQ(database.pragma("application_id"), kApplicationId);
  EXPECT_EQ(database.pragma("user_version"), current_schema().version);
}

TEST_F(SchemaTest, OtherDatabaseIsNoCatalog) {
  {
    Database database(path(), Database::Mode::create);
    database.execute("CREATE TABLE t (n)");
  }
  Database database = open();
  EXPECT_FALSE(is_blank(database));
  EXPECT_EQ(error_of([&] { upgrade_schema(database, current_schema()); }).code(), EINVAL);
}

TEST_F(SchemaTest, OneWithOtherThingsThanTablesIsRefusedByName) {
  for (const std::string hostile :
       {"DROP TABLE layer; CREATE VIEW endless AS WITH RECURSIVE r (id) AS (SELECT 1 UNION ALL "
        "SELECT "
        "id + 1 FROM r) SELECT * FROM r",
        "CREATE TRIGGER endless AFTER INSERT ON layer BEGIN DELETE FROM image; END",
        "CREATE VIRTUAL TABLE endless USING fts5(text)"}) {
    remove_file(path());
    make(current_schema());
    run_sql(path(), hostile);
    Database database = open();
    const Error error = error_of([&] { upgrade_schema(database, current_schema()); });
    EXPECT_EQ(error.code(), EUCLEAN) << hostile;
    EXPECT_NE(std::string(error.what()).find("endless"), std::string::npos) << error.what();
    EXPECT_EQ(error_of([&] { require_schema(database, current_schema()); }).code(), EUCLEAN);
  }
}

TEST_F(SchemaTest, NewerOneIsRefusedAndNotChanged) {
  make(version(3));
  Database database = open();
  for (const Error& error : {error_of([&] { upgrade_schema(database, version(2)); }),
                             error_of([&] { require_schema(database, version(2)); })}) {
    EXPECT_EQ(error.code(), EPROTONOSUPPORT);
    EXPECT_NE(std::string(error.what()).find("version 3"), std::string::npos);
  }
  EXPECT_EQ(database.pragma("user_version"), 3);
}

TEST_F(SchemaTest, OlderOneIsUpgradedAfterACopyWasKept) {
  make();
  Database database = open();
  EXPECT_TRUE(upgrade_schema(database, version(3)));
  EXPECT_EQ(database.pragma("user_version"), 3);
  EXPECT_NO_THROW(database.execute("SELECT note, more FROM image"));

  Database copy(path() + ".v1", Database::Mode::read_only);
  EXPECT_EQ(copy.pragma("user_version"), 1);
  EXPECT_NO_THROW(require_schema(copy, version(1)));
}

TEST_F(SchemaTest, Version1BecomesTheCurrentOne) {
  make(current_schema());
  run_sql(path(), std::string(kBackToVersion2) +
                      "DROP TABLE request; PRAGMA user_version = 1;"
                      "INSERT INTO base VALUES (1, '/b', 1, 2, 777, 4, 5, x'', NULL, NULL)");
  Database database = open();
  EXPECT_TRUE(upgrade_schema(database, current_schema()));
  EXPECT_NO_THROW(database.execute("INSERT INTO request VALUES (1, 2)"));
  const BaseRow base = read_base_row(database);
  EXPECT_EQ(base.format, BaseFormat::raw);
  EXPECT_EQ(base.virtual_size, 777U);
  EXPECT_TRUE(base.backing.empty());
  EXPECT_FALSE(upgrade_schema(database, current_schema()));
}

TEST_F(SchemaTest, CopyIsForTheOwnerOnly) {
  make();
  Database database = open();
  upgrade_schema(database, version(2));
  struct stat status {};
  ASSERT_EQ(::stat((path() + ".v1").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
}

TEST_F(SchemaTest, CopyOfAnUpgradeThatFailedIsReplaced) {
  make();
  Database database = open();
  write_file(path() + ".v1", pattern(1, 100));
  EXPECT_TRUE(upgrade_schema(database, version(2)));
  Database copy(path() + ".v1", Database::Mode::read_only);
  EXPECT_EQ(copy.pragma("user_version"), 1);
}

TEST_F(SchemaTest, FailedStepChangesNothing) {
  make();
  constexpr std::array kBad{
      Migration{.from = 1, .sql = "ALTER TABLE image ADD COLUMN note TEXT"},
      Migration{.from = 2, .sql = "ALTER TABLE nothing ADD COLUMN note TEXT"},
  };
  Schema bad = version(3);
  bad.migrations = kBad;
  Database database = open();
  EXPECT_THROW(upgrade_schema(database, bad), Error);
  EXPECT_EQ(database.pragma("user_version"), 1);
  EXPECT_THROW(database.execute("SELECT note FROM image"), Error);
}

TEST_F(SchemaTest, VersionWithoutAWayUpIsRefusedBeforeAnythingIsWritten) {
  make(version(0));
  Database database = open();
  EXPECT_EQ(error_of([&] { upgrade_schema(database, version(3)); }).code(), EPROTONOSUPPORT);
  EXPECT_FALSE(std::filesystem::exists(path() + ".v0"));
}

TEST_F(SchemaTest, ReaderDoesNotUpgrade) {
  make();
  Database database = open();
  const Error error = error_of([&] { require_schema(database, version(2)); });
  EXPECT_EQ(error.code(), EPROTONOSUPPORT);
  EXPECT_EQ(database.pragma("user_version"), 1);
}

}  // namespace
}  // namespace cowfs::test
