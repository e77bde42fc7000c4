#include "store/schema.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <vector>

#include "store/error.h"
#include "store/file.h"

namespace cowfs {
namespace {

// Ids are never used again (AUTOINCREMENT): they are inode numbers and file names. Image ids start
// at 2 since FUSE keeps 1 for the root directory.
constexpr const char* kDdl = R"sql(
CREATE TABLE store (
  id         INTEGER PRIMARY KEY CHECK (id = 1),
  uuid       TEXT    NOT NULL,
  chunk_size INTEGER NOT NULL,
  policy     TEXT    NOT NULL,
  created_ns INTEGER NOT NULL
);
CREATE TABLE base (
  id          INTEGER PRIMARY KEY CHECK (id = 1),
  path        TEXT    NOT NULL,
  device      INTEGER NOT NULL,
  inode       INTEGER NOT NULL,
  size        INTEGER NOT NULL,
  mtime_ns    INTEGER NOT NULL,
  ctime_ns    INTEGER NOT NULL,
  fingerprint BLOB    NOT NULL,
  checksum    BLOB
);
CREATE TABLE layer (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  parent       INTEGER REFERENCES layer (id),
  parent_limit INTEGER NOT NULL,
  has_file     INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE image (
  id       INTEGER PRIMARY KEY AUTOINCREMENT,
  name     TEXT    UNIQUE,
  layer    INTEGER NOT NULL REFERENCES layer (id),
  size     INTEGER NOT NULL,
  mode     INTEGER NOT NULL,
  uid      INTEGER NOT NULL,
  gid      INTEGER NOT NULL,
  atime_ns INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL,
  ctime_ns INTEGER NOT NULL,
  btime_ns INTEGER NOT NULL
);
CREATE TABLE map_page (
  layer INTEGER NOT NULL,
  page  INTEGER NOT NULL,
  bits  BLOB    NOT NULL,
  PRIMARY KEY (layer, page)
) WITHOUT ROWID;
INSERT INTO sqlite_sequence (name, seq) VALUES ('image', 1);
)sql";

void require_not_newer(int64_t version, Database& database, const Schema& schema) {
  if (version > schema.version) {
    throw Error::with_message(EPROTONOSUPPORT,
                              database.path() + ": has format version " + std::to_string(version) +
                                  ", this program knows up to " + std::to_string(schema.version) +
                                  "; use a newer cowfs");
  }
}

}  // namespace

const Schema& current_schema() {
  static const Schema schema{.version = 1, .ddl = kDdl, .migrations = {}};
  return schema;
}

void create_schema(Database& database, const Schema& schema) {
  database.execute("PRAGMA application_id = " + std::to_string(kApplicationId));
  database.execute("PRAGMA user_version = " + std::to_string(schema.version));
  database.execute(schema.ddl);
}

bool is_blank(Database& database) {
  Statement count = database.prepare("SELECT count(*) FROM sqlite_schema");
  count.step();
  return count.integer(0) == 0 && database.pragma("application_id") == 0;
}

void require_catalog(Database& database) {
  if (database.pragma("application_id") != kApplicationId) {
    throw Error::with_message(EINVAL, database.path() + ": not a cowfs catalog");
  }
}

bool upgrade_schema(Database& database, const Schema& schema) {
  require_catalog(database);
  const int64_t version = database.pragma("user_version");
  require_not_newer(version, database, schema);
  if (version == schema.version) return false;

  std::vector<const char*> steps;
  for (int64_t at = version; at < schema.version; ++at) {
    const auto step = std::find_if(schema.migrations.begin(), schema.migrations.end(),
                                   [at](const Migration& known) { return known.from == at; });
    if (step == schema.migrations.end()) {
      throw Error::with_message(EPROTONOSUPPORT, database.path() + ": format version " +
                                                     std::to_string(at) + " cannot be upgraded");
    }
    steps.push_back(step->sql);
  }

  // The copy first: it is the way back if the upgrade, or the new program, is not what one wanted.
  const std::string copy = database.path() + ".v" + std::to_string(version);
  remove_file(copy);  // of an upgrade that did not get to its end
  // SQLite takes an empty file; it would make one that everybody may read.
  const File file(copy, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  database.copy_to(copy);
  file.sync();
  const std::string directory = std::filesystem::path(copy).parent_path();
  File(directory.empty() ? "." : directory, O_RDONLY | O_DIRECTORY).sync();

  Transaction transaction(database);
  for (const char* sql : steps) database.execute(sql);
  database.execute("PRAGMA user_version = " + std::to_string(schema.version));
  transaction.commit();
  return true;
}

void require_schema(Database& database, const Schema& schema) {
  require_catalog(database);
  const int64_t version = database.pragma("user_version");
  require_not_newer(version, database, schema);
  if (version != schema.version) {
    throw Error::with_message(EPROTONOSUPPORT, database.path() + ": has format version " +
                                                   std::to_string(version) +
                                                   "; mount the store once to upgrade it");
  }
}

}  // namespace cowfs
