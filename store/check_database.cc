// A database that nobody trusts
//
// Nothing is taken for granted that was not looked at, in this order:
//   1. the schema, column by column, against that of a new catalog; a view in a table's place, a
//      trigger or a generated column could do anything
//   2. SQLite's integrity check: pages, indexes, NOT NULL, CHECK
//   3. that each value is of its column's type
// What cannot be trusted at one step ends the check there: what follows would be noise, and a
// repair on the grounds of it a guess. Foreign keys are looked at with the rows (check_catalog.cc),
// which can say whose they are.

#include "store/check_database.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <filesystem>
#include <set>
#include <utility>
#include <vector>

#include "store/check_report.h"
#include "store/file.h"
#include "store/schema.h"

namespace cowfs {
namespace {

using Severity = Finding::Severity;

std::string quoted(const std::string& name) {
  std::string text = "\"";
  for (const char c : name) text += c == '"' ? std::string("\"\"") : std::string(1, c);
  return text + "\"";
}

/// "name INTEGER NOT NULL key 1", of each column, sorted: an upgrade may have added some at the
/// end.
std::vector<std::string> columns_of(Database& database, const std::string& table) {
  Statement select = database.prepare(
      "SELECT name, type, \"notnull\", pk, hidden FROM pragma_table_xinfo(?) ORDER BY name");
  select.bind(1, table);
  std::vector<std::string> columns;
  while (select.step()) {
    columns.push_back(select.text(0) + " " + select.text(1) +
                      (select.integer(2) != 0 ? " NOT NULL" : "") +
                      (select.integer(3) != 0 ? " key " + select.text(3) : "") +
                      (select.integer(4) != 0 ? " hidden" : ""));
  }
  return columns;
}

/// (kind, name) of all that the schema holds, but for SQLite's own.
std::set<std::pair<std::string, std::string>> objects_of(Database& database) {
  Statement select = database.prepare(
      "SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'");
  std::set<std::pair<std::string, std::string>> objects;
  while (select.step()) objects.emplace(select.text(0), select.text(1));
  return objects;
}

bool check_schema(Database& database, Database& expected, CheckReport& report) {
  bool good = true;
  const auto wrong = [&](const std::string& what) {
    good = false;
    report.add({.severity = Severity::damage,
                .kind = "catalog_schema",
                .image = "",
                .what = "catalog: " + what,
                .remedy = kCopyBack});
  };
  const auto wanted = objects_of(expected);
  const auto there = objects_of(database);
  for (const auto& [type, name] : wanted) {
    if (!there.contains({type, name})) {
      wrong(fmt::format("its {} {} is missing", type, name));
    } else if (columns_of(database, name) != columns_of(expected, name)) {
      wrong(fmt::format("the columns of its {} {} are not those of this format", type, name));
    }
  }
  for (const auto& [type, name] : there) {
    if (!wanted.contains({type, name})) wrong(fmt::format("it holds a strange {} {}", type, name));
  }
  return good;
}

bool check_integrity(Database& database, CheckReport& report) {
  bool good = true;
  Statement check = database.prepare("PRAGMA integrity_check(20)");
  while (check.step()) {
    if (check.text(0) == "ok") continue;
    good = false;
    report.add({.severity = Severity::damage,
                .kind = "catalog_integrity",
                .image = "",
                .what = "catalog: SQLite finds: " + check.text(0),
                .remedy = kCopyBack});
  }
  return good;
}

bool check_types(Database& database, Database& expected, CheckReport& report) {
  bool good = true;
  Statement select = expected.prepare(
      "SELECT t.name, c.name, lower(c.type), c.\"notnull\" OR c.pk FROM sqlite_schema t, "
      "pragma_table_xinfo(t.name) c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite\\_%' ESCAPE "
      "'\\'");
  while (select.step()) {
    const std::string table = select.text(0);
    const std::string column = select.text(1);
    Statement count = database.prepare("SELECT count(*) FROM " + quoted(table) + " WHERE typeof(" +
                                       quoted(column) + ") NOT IN (?, ?)");
    count.bind(1, select.text(2)).bind(2, select.integer(3) != 0 ? select.text(2) : "null");
    count.step();
    if (count.integer(0) == 0) continue;
    good = false;
    report.add({.severity = Severity::damage,
                .kind = "catalog_rows",
                .image = "",
                .what = fmt::format(
                    "catalog: of table {}, {} something else than {} in column {}",
                    plural(static_cast<uint64_t>(count.integer(0)), "row holds", "rows hold"),
                    table, select.text(2), column),
                .remedy = kCopyBack});
  }
  return good;
}

}  // namespace

bool check_database(Database& database, CheckReport& report) {
  // Not in a file: a server may make none but in its store.
  Database expected(":memory:", Database::Mode::create);
  create_schema(expected, current_schema(), {.chunk_size = 4096, .policy = "sparse"});
  return check_schema(database, expected, report) && check_integrity(database, report) &&
         check_types(database, expected, report);
}

std::string save_catalog(const std::function<void(const std::string& path)>& copy_to,
                         const std::string& catalog_path, const std::string& suffix) {
  const std::string first = catalog_path + suffix;
  std::string path = first;
  for (int number = 2; std::filesystem::exists(std::filesystem::symlink_status(path)); ++number) {
    path = first + "." + std::to_string(number);
  }
  // SQLite takes an empty file; it would make one that everybody may read.
  const File file(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  try {
    copy_to(path);
    file.sync();
    sync_entry(path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
    throw;
  }
  return path;
}

}  // namespace cowfs
