#include "store/db.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "tests/store/support.h"

namespace cowfs::test {
namespace {

class DbTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::string path() const { return directory_ / "test.db"; }
  void make() const {
    Database database(path(), Database::Mode::create);
    database.execute("CREATE TABLE t (n INTEGER, text TEXT, blob BLOB)");
  }
  TempDir directory_;
};

int64_t count(Database& database) {
  Statement statement = database.prepare("SELECT count(*) FROM t");
  statement.step();
  return statement.integer(0);
}

TEST_F(DbTest, MissingFileIsMadeOnlyWhenAsked) {
  EXPECT_EQ(error_of([&] { Database(path(), Database::Mode::read_write); }).code(), ENOENT);
  EXPECT_EQ(error_of([&] { Database(path(), Database::Mode::read_only); }).code(), ENOENT);
  make();
  EXPECT_NO_THROW(Database(path(), Database::Mode::read_write));
}

TEST_F(DbTest, WritesAheadAndSyncsFully) {
  make();
  Database database(path(), Database::Mode::read_write);
  Statement mode = database.prepare("PRAGMA journal_mode");
  ASSERT_TRUE(mode.step());
  EXPECT_EQ(mode.text(0), "wal");
  EXPECT_EQ(database.pragma("synchronous"), 2);
  EXPECT_EQ(database.pragma("wal_autocheckpoint"), 0);
}

TEST_F(DbTest, ReadOnlyRefusesChanges) {
  make();
  Database database(path(), Database::Mode::read_only);
  EXPECT_EQ(error_of([&] { database.execute("INSERT INTO t VALUES (1, '', x'')"); }).code(), EROFS);
}

TEST_F(DbTest, FileThatIsNoDatabaseIsRefusedAndNotChanged) {
  const Bytes text = pattern(1, 10000);
  write_file(path(), text);
  const Error error = error_of([&] { Database(path(), Database::Mode::read_write); });
  EXPECT_EQ(error.code(), EINVAL);
  EXPECT_NE(std::string(error.what()).find(path()), std::string::npos);
  EXPECT_EQ(read_file(path()), text);
}

TEST_F(DbTest, TruncatedFileIsDamaged) {
  make();
  {
    Database database(path(), Database::Mode::read_write);
    for (int i = 0; i < 100; ++i) database.execute("INSERT INTO t VALUES (1, '', zeroblob(1000))");
  }
  ASSERT_EQ(::truncate(path().c_str(), 5000), 0);
  const Error error = error_of([&] {
    Database database(path(), Database::Mode::read_write);
    count(database);
  });
  EXPECT_EQ(error.code(), EUCLEAN);
}

TEST_F(DbTest, LinkToADatabaseIsRefused) {
  make();
  ASSERT_EQ(::symlink(path().c_str(), (directory_ / "link").c_str()), 0);
  EXPECT_THROW(Database(directory_ / "link", Database::Mode::read_write), Error);
}

TEST_F(DbTest, LinksOnTheWayAreFollowed) {
  ASSERT_EQ(::mkdir((directory_ / "real").c_str(), 0700), 0);
  ASSERT_EQ(::symlink("real", (directory_ / "link").c_str()), 0);
  { Database database(directory_ / "link/test.db", Database::Mode::create); }
  EXPECT_NO_THROW(Database(directory_ / "real/test.db", Database::Mode::read_write));
}

TEST_F(DbTest, ValuesComeBackAsTheyWent) {
  make();
  Database database(path(), Database::Mode::read_write);
  const Bytes blob = pattern(1, 512);
  const std::string text("a\0b", 3);
  database.prepare("INSERT INTO t VALUES (?, ?, ?)")
      .bind(1, INT64_MIN)
      .bind(2, text)
      .bind(3, std::span<const std::byte>(blob))
      .run();
  database.prepare("INSERT INTO t VALUES (?, NULL, ?)").bind_null(1).bind_null(2).run();
  EXPECT_EQ(database.last_insert_id(), 2);
  Statement select = database.prepare("SELECT n, text, blob FROM t ORDER BY rowid");
  ASSERT_TRUE(select.step());
  EXPECT_EQ(select.integer(0), INT64_MIN);
  EXPECT_EQ(select.text(1), text);
  EXPECT_EQ(Bytes(select.blob(2).begin(), select.blob(2).end()), blob);
  ASSERT_TRUE(select.step());
  EXPECT_TRUE(select.is_null(0));
  EXPECT_EQ(select.text(1), "");
  EXPECT_TRUE(select.blob(2).empty());
  EXPECT_FALSE(select.step());
}

TEST_F(DbTest, StatementCanRunAgainAfterAFailure) {
  make();
  Database database(path(), Database::Mode::read_write);
  database.execute("CREATE UNIQUE INDEX i ON t (n)");
  Statement insert = database.prepare("INSERT INTO t VALUES (?, '', x'')");
  insert.bind(1, int64_t{1}).run();
  EXPECT_EQ(error_of([&] { insert.bind(1, int64_t{1}).run(); }).code(), EEXIST);
  insert.bind(1, int64_t{2}).run();
  EXPECT_EQ(count(database), 2);
}

TEST_F(DbTest, TransactionIsRolledBackUnlessCommitted) {
  make();
  Database database(path(), Database::Mode::read_write);
  {
    Transaction transaction(database);
    database.execute("INSERT INTO t VALUES (1, '', x'')");
  }
  EXPECT_EQ(count(database), 0);
  {
    Transaction transaction(database);
    database.execute("INSERT INTO t VALUES (1, '', x'')");
    transaction.commit();
  }
  EXPECT_EQ(count(database), 1);
}

TEST_F(DbTest, CommittedIsSeenByAnotherConnectionBeforeAnyCheckpoint) {
  make();
  Database writer(path(), Database::Mode::read_write);
  Database reader(path(), Database::Mode::read_only);
  Transaction transaction(writer);
  writer.execute("INSERT INTO t VALUES (1, '', x'')");
  EXPECT_EQ(count(reader), 0);
  transaction.commit();
  EXPECT_EQ(count(reader), 1);
}

TEST_F(DbTest, CheckpointEmptiesTheLog) {
  make();
  Database database(path(), Database::Mode::read_write);
  database.execute("INSERT INTO t VALUES (1, '', x'')");
  EXPECT_EQ(database.checkpoint(), 0);
}

TEST_F(DbTest, CopyIsWhole) {
  make();
  Database database(path(), Database::Mode::read_write);
  database.execute("INSERT INTO t VALUES (1, '', x'')");
  database.copy_to(directory_ / "copy.db");
  Database copy(directory_ / "copy.db", Database::Mode::read_only);
  EXPECT_EQ(count(copy), 1);
  EXPECT_THROW(database.copy_to(directory_ / "copy.db"), Error);
}

TEST_F(DbTest, HostileSchemaRunsNothing) {
  make();
  Database database(path(), Database::Mode::read_write);
  EXPECT_THROW(database.execute("PRAGMA writable_schema = ON; DELETE FROM sqlite_schema"), Error);
}

}  // namespace
}  // namespace cowfs::test
