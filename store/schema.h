#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "store/db.h"

namespace cowfs {

/// How to get from one format version to the next.
struct Migration {
  int from;         ///< leads from this version to from + 1
  const char* sql;  ///< run in one transaction with the change of the version
};

/// A version of the catalog's tables; user_version holds its number. See cowfs-format(5).
struct Schema {
  int version;
  const char* ddl;
  std::span<const Migration> migrations;
};

/// What this program writes.
const Schema& current_schema();

/// "cowf": marks a SQLite file as a catalog (PRAGMA application_id).
constexpr int kApplicationId = 0x636f7766;

/// What a store is made with and keeps for good.
struct Fixed {
  uint32_t chunk_size;  ///< bytes
  std::string policy;
};

/// Makes the tables in a blank database; the caller has a Transaction open. What is fixed stands in
/// the row of the table `store` and as a condition in the table's definition: another chunk size,
/// which would show every image wrong, cannot come in by itself.
void create_schema(Database& database, const Schema& schema, const Fixed& fixed);

/// Looks at the file's first bytes without SQLite, which leaves files beside what it opens. Throws
/// EINVAL if `path` is another program's database or none at all, EUCLEAN if it was cut short. An
/// empty file passes, and one that is_blank.
void require_sound_header(const std::string& path);

/// Whether the database holds nothing yet, as one whose making was cut short.
bool is_blank(Database& database);

/// EINVAL if it is no catalog at all, EUCLEAN if it holds other things than tables (I10).
void require_catalog(Database& database);

/// EUCLEAN if a row of the table `store` is not what its definition asks for; see create_schema.
/// Takes time that does not depend on the catalog's size.
void require_fixed(Database& database);

/// EUCLEAN if a value of the tables but map_page is of another type than its column, or out of its
/// range, as far as that can be said of it alone.
void require_values(Database& database);

/// Makes sure that `database` is a catalog of version `schema.version`. An older one is upgraded
/// after a copy of it was written beside it, `catalog.db.vN`; returns true then. Throws EINVAL if
/// it is no catalog, EPROTONOSUPPORT if it is newer than this program or too old to be upgraded;
/// then nothing has changed.
bool upgrade_schema(Database& database, const Schema& schema);

/// Throws as upgrade_schema would, also (EPROTONOSUPPORT) where that would change something.
void require_schema(Database& database, const Schema& schema);

}  // namespace cowfs
