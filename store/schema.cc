#include "store/schema.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <vector>

#include "store/error.h"
#include "store/file.h"
#include "store/names.h"

namespace cowfs {
namespace {

// Ids are never used again (AUTOINCREMENT): they are inode numbers and file names. Image ids start
// at 2 since FUSE keeps 1 for the root directory.
constexpr const char* kDdl = R"sql(
CREATE TABLE store (
  id         INTEGER PRIMARY KEY CHECK (id = 1),
  uuid       TEXT    NOT NULL,
  chunk_size INTEGER NOT NULL CHECK (chunk_size = $chunk_size),
  policy     TEXT    NOT NULL CHECK (policy = '$policy'),
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
  checksum    BLOB,
  written_ns  INTEGER,
  format       TEXT    NOT NULL DEFAULT 'raw',
  snapshot     TEXT,
  virtual_size INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE backing (
  position    INTEGER PRIMARY KEY,
  path        TEXT    NOT NULL,
  format      TEXT    NOT NULL,
  device      INTEGER NOT NULL,
  inode       INTEGER NOT NULL,
  size        INTEGER NOT NULL,
  mtime_ns    INTEGER NOT NULL,
  ctime_ns    INTEGER NOT NULL,
  fingerprint BLOB    NOT NULL
);
CREATE TABLE layer (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  parent       INTEGER REFERENCES layer (id),
  parent_limit INTEGER NOT NULL,
  has_file     INTEGER NOT NULL DEFAULT 0,
  failure      TEXT,
  own_chunks   INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE image (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  name        TEXT    UNIQUE,
  layer       INTEGER NOT NULL REFERENCES layer (id),
  size        INTEGER NOT NULL,
  mode        INTEGER NOT NULL,
  uid         INTEGER NOT NULL,
  gid         INTEGER NOT NULL,
  atime_ns    INTEGER NOT NULL,
  mtime_ns    INTEGER NOT NULL,
  ctime_ns    INTEGER NOT NULL,
  btime_ns    INTEGER NOT NULL,
  space_limit INTEGER
);
CREATE TABLE map_page (
  layer INTEGER NOT NULL,
  page  INTEGER NOT NULL,
  bits  BLOB    NOT NULL,
  PRIMARY KEY (layer, page)
) WITHOUT ROWID;
CREATE TABLE request (
  id    INTEGER PRIMARY KEY,
  image INTEGER NOT NULL
);
CREATE TABLE pool (
  id         INTEGER PRIMARY KEY CHECK (id = 1),
  slots      INTEGER NOT NULL,
  generation INTEGER NOT NULL,
  previous   INTEGER NOT NULL
);
CREATE TABLE pool_page (
  page INTEGER PRIMARY KEY,
  bits BLOB    NOT NULL
);
INSERT INTO sqlite_sequence (name, seq) VALUES ('image', 1);
)sql";

constexpr std::array kMigrations{
    Migration{.from = 1,
              .sql = "CREATE TABLE request (id INTEGER PRIMARY KEY, image INTEGER NOT NULL)"},
    // Before version 3 every base was read as raw, whatever it began with.
    Migration{.from = 2,
              .sql = "ALTER TABLE base ADD COLUMN format TEXT NOT NULL DEFAULT 'raw';"
                     "ALTER TABLE base ADD COLUMN snapshot TEXT;"
                     "ALTER TABLE base ADD COLUMN virtual_size INTEGER NOT NULL DEFAULT 0;"
                     "UPDATE base SET virtual_size = size;"
                     "CREATE TABLE backing (position INTEGER PRIMARY KEY, path TEXT NOT NULL,"
                     " format TEXT NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL,"
                     " size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
                     " ctime_ns INTEGER NOT NULL, fingerprint BLOB NOT NULL);"
                     "ALTER TABLE layer ADD COLUMN own_chunks INTEGER NOT NULL DEFAULT 0;"
                     "CREATE TABLE pool (id INTEGER PRIMARY KEY CHECK (id = 1), slots INTEGER NOT "
                     "NULL, generation INTEGER NOT NULL, previous INTEGER NOT NULL);"
                     "CREATE TABLE pool_page (page INTEGER PRIMARY KEY, bits BLOB NOT NULL);"},
};

void require_not_newer(int64_t version, Database& database, const Schema& schema) {
  if (version > schema.version) {
    throw Error::with_message(EPROTONOSUPPORT,
                              database.path() + ": has format version " + std::to_string(version) +
                                  ", this program knows up to " + std::to_string(schema.version) +
                                  "; use a newer cowfs");
  }
}

void replace(std::string& text, std::string_view what, const std::string& by) {
  const size_t at = text.find(what);
  if (at != std::string::npos) text.replace(at, what.size(), by);
}

/// Big-endian.
uint32_t number_at(std::span<const std::byte> bytes, size_t offset) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8U | std::to_integer<uint32_t>(bytes[offset + i]);
  return value;
}

}  // namespace

// https://www.sqlite.org/fileformat2.html, "The Database Header"
void require_sound_header(const std::string& path) {
  constexpr std::string_view kMagic("SQLite format 3\0", 16);
  constexpr size_t kPageSize = 16;
  constexpr size_t kPages = 28;
  constexpr size_t kSchemaCookie = 40;
  constexpr size_t kApplication = 68;
  // A pipe would be waited for.
  const File file(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  if (!S_ISREG(file.status().st_mode)) {
    throw Error::with_message(EINVAL, path + ": is no regular file");
  }
  std::array<std::byte, 100> header{};
  const size_t size = file.read(header, 0);
  if (size == 0) return;
  if (size < header.size() || std::memcmp(header.data(), kMagic.data(), kMagic.size()) != 0) {
    throw Error::with_message(EINVAL, path + ": is not a SQLite file");
  }
  const bool blank = number_at(header, kSchemaCookie) == 0;
  if (!blank && number_at(header, kApplication) != kApplicationId) {
    throw Error::with_message(EINVAL, path + ": not a cowfs catalog");
  }
  // What a log holds still may be missing in the file.
  std::error_code error;
  const auto log = std::filesystem::file_size(path + "-wal", error);
  if (!error && log > 0) return;
  const uint64_t raw_page = number_at(header, kPageSize) >> 16U;
  const uint64_t page = raw_page == 1 ? 65536 : raw_page;
  if (file.size() < page * number_at(header, kPages)) {
    throw Error::with_message(EUCLEAN, path + ": damaged: it was cut short");
  }
}

const Schema& current_schema() {
  static const Schema schema{.version = 3, .ddl = kDdl, .migrations = kMigrations};
  return schema;
}

void create_schema(Database& database, const Schema& schema, const Fixed& fixed) {
  database.execute("PRAGMA application_id = " + std::to_string(kApplicationId));
  database.execute("PRAGMA user_version = " + std::to_string(schema.version));
  std::string ddl = schema.ddl;
  replace(ddl, "$chunk_size", std::to_string(fixed.chunk_size));
  replace(ddl, "$policy", fixed.policy);
  database.execute(ddl);
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
  // A view in the place of a table, or a trigger, could make the simplest statement run for ever.
  Statement foreign = database.prepare(
      "SELECT name FROM sqlite_schema WHERE type IN ('view', 'trigger') OR sql LIKE 'CREATE "
      "VIRTUAL%'");
  if (foreign.step()) {
    throw Error::with_message(EUCLEAN, database.path() +
                                           ": damaged: a catalog holds tables only, "
                                           "and '" +
                                           printable(foreign.text(0)) + "' is none");
  }
}

void require_fixed(Database& database) {
  Statement check = database.prepare("PRAGMA quick_check(store)");
  if (!check.step() || check.text(0) == "ok") return;
  throw Error::with_message(EUCLEAN, database.path() +
                                         ": damaged: its row of table store is not what the store "
                                         "was made with (SQLite: " +
                                         printable(check.text(0)) + ")");
}

void require_values(Database& database) {
  struct Rule {
    const char* table;
    const char* broken;  // a condition
    const char* key = "id";
  };
  // What can be said of sizes, names and numbers in words of their own is said where they are read.
  constexpr std::array kRules{
      Rule{"store",
           "typeof(uuid) <> 'text' OR typeof(chunk_size) <> 'integer' OR typeof(policy) <> "
           "'text' OR typeof(created_ns) <> 'integer'"},
      Rule{"base",
           "id <> 1 OR typeof(path) <> 'text' OR typeof(device) <> 'integer' OR "
           "typeof(inode) <> 'integer' OR typeof(size) <> 'integer' OR typeof(mtime_ns) <> "
           "'integer' OR typeof(ctime_ns) <> 'integer' OR typeof(fingerprint) <> 'blob' OR "
           "length(fingerprint) <> 16 OR typeof(checksum) NOT IN ('blob', 'null') OR "
           "length(checksum) <> 16 OR typeof(written_ns) NOT IN ('integer', 'null') OR "
           "format NOT IN ('raw', 'qcow2', 'qcow') OR typeof(snapshot) NOT IN ('text', 'null') OR "
           "typeof(virtual_size) <> 'integer'"},
      Rule{"backing",
           "position NOT BETWEEN 1 AND 63 OR typeof(path) <> 'text' OR "
           "format NOT IN ('raw', 'qcow2', 'qcow') OR typeof(device) <> 'integer' OR "
           "typeof(inode) <> 'integer' OR typeof(size) <> 'integer' OR typeof(mtime_ns) <> "
           "'integer' OR typeof(ctime_ns) <> 'integer' OR typeof(fingerprint) <> 'blob' OR "
           "length(fingerprint) <> 16",
           "position"},
      Rule{"layer",
           "id < 1 OR typeof(parent_limit) <> 'integer' OR has_file NOT IN (0, 1) OR "
           "typeof(has_file) <> 'integer' OR typeof(failure) NOT IN ('text', 'null') OR "
           "typeof(own_chunks) <> 'integer' OR own_chunks < 0"},
      Rule{"pool",
           "id <> 1 OR typeof(slots) <> 'integer' OR slots < 1 OR typeof(generation) <> 'integer' "
           "OR generation < 1 OR typeof(previous) <> 'integer' OR previous < 0"},
      Rule{"image",
           "typeof(name) NOT IN ('text', 'null') OR typeof(layer) <> 'integer' OR "
           "typeof(size) <> 'integer' OR typeof(mode) <> 'integer' OR typeof(uid) <> "
           "'integer' OR uid NOT BETWEEN 0 AND 4294967295 OR typeof(gid) <> 'integer' OR "
           "gid NOT BETWEEN 0 AND 4294967295 OR typeof(atime_ns) <> 'integer' OR "
           "typeof(mtime_ns) <> 'integer' OR typeof(ctime_ns) <> 'integer' OR "
           "typeof(btime_ns) <> 'integer' OR typeof(space_limit) NOT IN ('integer', "
           "'null') OR space_limit < 0"},
      Rule{"request", "typeof(image) <> 'integer' OR image < 0"}};
  for (const Rule& rule : kRules) {
    Statement select = database.prepare(std::string("SELECT ") + rule.key + " FROM " + rule.table +
                                        " WHERE " + rule.broken + " LIMIT 1");
    if (!select.step()) continue;
    throw Error::with_message(EUCLEAN, database.path() + ": damaged: row " +
                                           std::to_string(select.integer(0)) + " of table " +
                                           rule.table + " holds a value that cannot be");
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
  sync_entry(copy);

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
  if (version == schema.version) return;
  const bool can_be_upgraded =
      std::any_of(schema.migrations.begin(), schema.migrations.end(),
                  [version](const Migration& known) { return known.from == version; });
  if (!can_be_upgraded) {
    throw Error::with_message(EPROTONOSUPPORT, database.path() + ": format version " +
                                                   std::to_string(version) + " cannot be upgraded");
  }
  throw Error::with_message(EPROTONOSUPPORT, database.path() + ": has format version " +
                                                 std::to_string(version) +
                                                 "; mount the store once to upgrade it");
}

}  // namespace cowfs
