// A catalog as a stranger could hand it to us (I10). The input is a list of edits of a sound one,
// of its rows, its tables, its bytes and the files beside it; then the store is opened by the
// ordinary code, and where that goes well, read, written, flushed, resized, and opened again. An
// Error is what is wanted; anything else is a finding.

#include <fcntl.h>
#include <spdlog/logger.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>

#include "store/db.h"
#include "store/error.h"
#include "store/store.h"
#include "tests/fuzz/input.h"

using namespace cowfs;
using namespace cowfs::fuzz;
namespace fs = std::filesystem;

namespace {

constexpr uint64_t kBaseSize = 300'001;
/// The same with the other policy is a target of its own.
#ifdef COWFS_FUZZ_POOL
constexpr bool kPool = true;
#else
constexpr bool kPool = false;
#endif

/// Directories of this process, in memory if that can be had.
class Scratch {
 public:
  Scratch() {
    const std::string parent =
        fs::is_directory("/dev/shm") ? "/dev/shm" : fs::temp_directory_path().string();
    path_ = parent + "/cowfs-fuzz-" + std::to_string(::getpid());
    fs::create_directory(path_);
    make_store();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { fs::remove_all(path_); }

  [[nodiscard]] Store::Options options() const {
    Store::Options options;
    options.directory = store();
    options.base_path = path_ + "/base";
    options.log = log_;
    return options;
  }
  [[nodiscard]] std::string store() const { return path_ + "/store"; }
  [[nodiscard]] std::string catalog() const { return store() + "/catalog.db"; }

  /// The store as it was made.
  void restore() const {
    // The alarm by which libFuzzer looks at the time may interrupt it.
    std::error_code code;
    do {
      fs::remove_all(store());
      fs::copy(path_ + "/sound", store(), fs::copy_options::recursive, code);
    } while (code == std::errc::interrupted);
    if (code) throw fs::filesystem_error("restore", code);
  }

 private:
  void make_store() {
    File(path_ + "/base", O_RDWR | O_CREAT, 0600).truncate(kBaseSize);
    {
      Store::Options making = options();
      making.create = true;
      if (kPool) {
        making.policy = "pool";
        making.chunk_size = 4096;
        making.pool_size = 4 << 20;
      }
      Store store(making);
      for (const char* name : {"plain", "written", "long"}) {
        const Image::Use image = store.create({.name = name, .size = {}})->use();
        if (name == std::string_view("plain")) continue;
        image->write(std::vector<std::byte>(20'000, std::byte{1}), 5000);
        image->make_zero(100'000, 50'000);
        if (name == std::string_view("long")) image->resize(uint64_t{1} << 40);
      }
      require(store.close());
    }
    fs::rename(store(), path_ + "/sound");
  }

  std::string path_;
  std::shared_ptr<spdlog::logger> log_ = std::make_shared<spdlog::logger>("fuzz");
};

struct Table {
  const char* name;
  const char* key;
  std::array<const char*, 12> columns;
};
constexpr std::array kTables = std::to_array<Table>({
    {"store", "id", {"id", "uuid", "chunk_size", "policy", "created_ns"}},
    {"base",
     "id",
     {"path", "device", "inode", "size", "mtime_ns", "ctime_ns", "fingerprint", "checksum",
      "written_ns", "format", "snapshot", "virtual_size"}},
    {"layer", "id", {"id", "parent", "parent_limit", "has_file", "failure"}},
    {"image",
     "id",
     {"id", "name", "layer", "size", "mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns",
      "btime_ns", "space_limit"}},
    {"backing",
     "position",
     {"position", "path", "format", "device", "inode", "size", "mtime_ns", "ctime_ns",
      "fingerprint"}},
    {"map_page", "page", {"layer", "page", "bits"}},
    {"sqlite_sequence", "name", {"name", "seq"}},
#ifdef COWFS_FUZZ_POOL
    {"layer", "id", {"id", "own_chunks"}},
    {"pool", "id", {"id", "slots", "generation", "previous"}},
    {"pool_page", "page", {"page", "bits"}},
#endif
});

/// What changes tables rather than rows.
constexpr std::array<const char*, 12> kStatements{
    "PRAGMA user_version = 0",
    "PRAGMA user_version = 2147483647",
    "PRAGMA application_id = 1",
    "DROP TABLE map_page",
    "DROP TABLE base; CREATE VIEW base AS SELECT * FROM store",
    "ALTER TABLE image RENAME COLUMN size TO length",
    "CREATE TRIGGER t AFTER UPDATE ON image BEGIN DELETE FROM layer; END",
    "CREATE TRIGGER t AFTER INSERT ON map_page BEGIN INSERT OR REPLACE INTO map_page VALUES "
    "(new.layer, new.page + 1, new.bits); END",
    "ALTER TABLE layer RENAME TO old; CREATE VIEW layer AS WITH RECURSIVE r (id) AS (SELECT 1 "
    "UNION "
    "ALL SELECT id + 1 FROM r) SELECT id, NULL AS parent, 0 AS parent_limit, 0 AS has_file, NULL "
    "AS "
    "failure FROM r",
    "UPDATE layer SET parent = 1 + id % 3",
    "UPDATE image SET layer = 1",
    "INSERT INTO image SELECT id + 100, NULL, layer, size, mode, uid, gid, 0, 0, 0, 0, NULL FROM "
    "image"};

/// Binds a value of any type.
void bind_any(Statement& statement, int position, Input& input) {
  constexpr std::array<int64_t, 12> kEdges{0,         1,         2,          4096,
                                           1 << 21,   INT32_MAX, -1,         int64_t{1} << 50,
                                           INT64_MAX, INT64_MIN, UINT32_MAX, 300'001};
  switch (input.choice(6)) {
    case 0:
      statement.bind_null(position);
      break;
    case 1:
      statement.bind(position, input.number<int64_t>());
      break;
    case 2:
      statement.bind(position, kEdges[input.choice(kEdges.size())]);
      break;
    case 3:
      statement.bind(position, input.text());
      break;
    case 4: {
      const std::string text = input.text();
      statement.bind(position, std::as_bytes(std::span(text)));
      break;
    }
    default: {  // as large as a map page
      const std::vector<std::byte> page(512, std::byte{input.number<uint8_t>()});
      statement.bind(position, page);
    }
  }
}

void change_row(Database& database, Input& input) {
  const Table& table = kTables[input.choice(kTables.size())];
  const char* column = table.columns[input.choice(table.columns.size())];
  if (column == nullptr) column = table.columns[0];
  const std::string name = table.name;
  const std::string key = table.key;
  Statement update =
      database.prepare("UPDATE " + name + " SET " + column + " = ?1 WHERE " + key + " IN (SELECT " +
                       key + " FROM " + name + " ORDER BY " + key + " LIMIT 1 OFFSET ?2)");
  bind_any(update, 1, input);
  update.bind(2, static_cast<int64_t>(input.choice(4))).run();
}

void add_row(Database& database, Input& input) {
  const Table& table = kTables[input.choice(kTables.size())];
  std::string columns;
  std::string values;
  int count = 0;
  for (const char* column : table.columns) {
    if (column == nullptr) break;
    columns += (count > 0 ? ", " : "") + std::string(column);
    values += count > 0 ? ", ?" : "?";
    ++count;
  }
  Statement insert = database.prepare("INSERT OR REPLACE INTO " + std::string(table.name) + " (" +
                                      columns + ") VALUES (" + values + ")");
  for (int i = 1; i <= count; ++i) bind_any(insert, i, input);
  insert.run();
}

void remove_rows(Database& database, Input& input) {
  const Table& table = kTables[input.choice(kTables.size())];
  database.execute("DELETE FROM " + std::string(table.name));
}

void change_bytes(const std::string& path, Input& input) {
  const File file(path, O_RDWR);
  const uint64_t offset = input.number<uint32_t>() % (file.size() + 1);
  const std::string bytes = input.text();
  file.write(std::as_bytes(std::span(bytes)), offset);
}

void change_file(const Scratch& scratch, Input& input) {
  const std::string path =
      scratch.store() +
      (kPool ? "/pool" : "/layers/" + std::to_string(1 + input.choice(5)) + ".cow");
  fs::remove_all(path);
  switch (input.choice(4)) {
    case 0:
      break;
    case 1:
      fs::create_directory(path);
      break;
    case 2:
      fs::create_symlink(scratch.catalog(), path);
      break;
    default:
      File(path, O_RDWR | O_CREAT, 0600).truncate(input.number<uint16_t>());
  }
}

/// Edits until the input ends. What SQLite refuses is passed over.
void edit(const Scratch& scratch, Input& input) {
  while (!input.empty()) {
    try {
      const size_t kind = input.choice(7);
      if (kind == 5) {
        change_bytes(scratch.catalog(), input);
      } else if (kind == 6) {
        change_file(scratch, input);
      } else {
        Database database(scratch.catalog(), Database::Mode::read_write);
        database.execute("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON");
        switch (kind) {
          case 0:
          case 1:
            change_row(database, input);
            break;
          case 2:
            add_row(database, input);
            break;
          case 3:
            remove_rows(database, input);
            break;
          default:
            database.execute(kStatements[input.choice(kStatements.size())]);
        }
      }
    } catch (const Error&) {
    }
  }
}

template <typename Action>
void tolerate_errors(const Action& action) {
  try {
    action();
  } catch (const Error&) {
  }
}

void use(Store& store, const std::shared_ptr<Image>& image) {
  const Image::Use used = image->use();
  const uint64_t size = used->size();
  std::vector<std::byte> buffer(70'000);
  for (const uint64_t at : {uint64_t{0}, uint64_t{250'000}, size / 2, size - size % 4096}) {
    tolerate_errors([&] { require(used->read(buffer, at) <= buffer.size()); });
    tolerate_errors([&] { used->write(std::span(buffer).first(5000), at); });
  }
  // Looking through all of a map takes its time where an image is as large as can be.
  const uint64_t near_end = size - std::min(size, uint64_t{1} << 32);
  tolerate_errors([&] { static_cast<void>(used->next_data(near_end)); });
  tolerate_errors([&] { static_cast<void>(used->next_hole(near_end)); });
  tolerate_errors([&] { used->make_zero(8192, 20'000); });
  tolerate_errors([&] { used->flush(); });
  tolerate_errors([&] { used->resize(size / 2 + 1); });
  tolerate_errors([&] { used->resize(size + 12'345); });
  if (const std::shared_ptr<Image> plain = store.find("plain"); plain && plain != image) {
    tolerate_errors([&] {
      const Image::Use other = plain->use();
      other->copy_from(*image, 0, 0, 100'000);
    });
  }
  tolerate_errors([&] { used->flush_all(); });
}

void use(Store& store) {
  for (const Store::Entry& entry : store.list(0, 100)) {
    tolerate_errors([&] { use(store, entry.image); });
  }
  tolerate_errors([&] {
    store.create({.name = "new", .size = {}})->use()->write(std::vector<std::byte>(10'000), 0);
  });
  tolerate_errors([&] { store.rename("new", "plain", Store::Rename::exchange); });
  tolerate_errors([&] { store.remove("written"); });
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Scratch scratch;
  Input input(data, size);
  scratch.restore();
  edit(scratch, input);
  tolerate_errors([&] { static_cast<void>(summarize_store(scratch.store())); });
  tolerate_errors([&] {
    Store store(scratch.options());
    use(store);
    store.close();
  });
  tolerate_errors([&] { static_cast<void>(Store(scratch.options()).own_bytes()); });
  return 0;
}
