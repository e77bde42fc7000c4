#include "store/catalog.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "store/chunk_map.h"
#include "store/chunk_size.h"
#include "store/error.h"
#include "store/file.h"
#include "store/host_fs.h"
#include "store/names.h"

namespace cowfs {
namespace {

static_assert(std::endian::native == std::endian::little, "map pages are little-endian on disk");

int64_t to_sql(uint64_t value) { return static_cast<int64_t>(value); }
uint64_t from_sql(int64_t value) { return static_cast<uint64_t>(value); }

std::vector<std::byte> copy_of(std::span<const std::byte> blob) {
  return {blob.begin(), blob.end()};
}

Error damaged(const std::string& path, const std::string& what) {
  return Error::with_message(EUCLEAN, path + ": damaged: " + what);
}

bool is_name(const std::string& text) {
  try {
    check_name(text);
    return true;
  } catch (const Error&) {
    return false;
  }
}

void bind_base(Statement& statement, const BaseRow& base) {
  statement.bind(1, base.path)
      .bind(2, to_sql(base.device))
      .bind(3, to_sql(base.inode))
      .bind(4, to_sql(base.size))
      .bind(5, base.mtime_ns)
      .bind(6, base.ctime_ns)
      .bind(7, base.fingerprint);
  if (base.checksum.empty()) {
    statement.bind_null(8);
  } else {
    statement.bind(8, base.checksum);
  }
  if (base.written_ns) {
    statement.bind(9, *base.written_ns);
  } else {
    statement.bind_null(9);
  }
  statement.bind(10, std::string(format_name(base.format)));
  if (base.snapshot) {
    statement.bind(11, *base.snapshot);
  } else {
    statement.bind_null(11);
  }
  statement.bind(12, to_sql(base.virtual_size));
}

void replace_backing(Database& database, const std::vector<BaseFileRow>& files) {
  database.execute("DELETE FROM backing");
  int64_t position = 0;
  for (const BaseFileRow& file : files) {
    database
        .prepare(
            "INSERT INTO backing (position, path, format, device, inode, size, mtime_ns, ctime_ns, "
            "fingerprint) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(1, ++position)
        .bind(2, file.path)
        .bind(3, std::string(format_name(file.format)))
        .bind(4, to_sql(file.device))
        .bind(5, to_sql(file.inode))
        .bind(6, to_sql(file.size))
        .bind(7, file.mtime_ns)
        .bind(8, file.ctime_ns)
        .bind(9, file.fingerprint)
        .run();
  }
}

BaseFormat format_of(const std::string& name, const std::string& catalog) {
  const std::optional<BaseFormat> format = find_base_format(name);
  if (!format) throw damaged(catalog, "the base has the format '" + printable(name) + "'");
  return *format;
}

}  // namespace

int64_t catalog_now() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

Database::Mode writing_mode(const std::string& directory) {
  return mapped_change_takes_space(directory) ? Database::Mode::read_write_alone
                                              : Database::Mode::read_write;
}

Database::Mode reading_mode(const std::string& directory) {
  // Somebody else may be reading it where he can.
  return writing_mode(directory) == Database::Mode::read_write ? Database::Mode::read_only
                                                               : Database::Mode::at_rest;
}

void Catalog::create(const std::string& path, const StoreRow& store, const BaseRow& base,
                     const Schema& schema) {
  if (exists(path)) throw Error(EEXIST, path);
  // Made under another name: SQLite's own way back from a power cut during the making, a rollback
  // journal, would need a write where a catalog is only looked at.
  const std::string draft = path + ".new";
  for (const char* suffix : {"", "-journal", "-wal", "-shm"}) remove_file(draft + suffix);
  {
    Database database(draft, Database::Mode::create);
    Transaction transaction(database);
    create_schema(database, schema, {.chunk_size = store.chunk_size, .policy = store.policy});
    database.prepare("INSERT INTO store VALUES (1, ?, ?, ?, ?)")
        .bind(1, store.uuid)
        .bind(2, int64_t{store.chunk_size})
        .bind(3, store.policy)
        .bind(4, store.created_ns)
        .run();
    Statement insert = database.prepare(
        "INSERT INTO base (id, path, device, inode, size, mtime_ns, ctime_ns, fingerprint, "
        "checksum, written_ns, format, snapshot, virtual_size) "
        "VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    bind_base(insert, base);
    insert.run();
    if (store.pool_slots) {
      database.prepare("INSERT INTO pool (id, slots, generation, previous) VALUES (1, ?, ?, 0)")
          .bind(1, to_sql(*store.pool_slots))
          .bind(2, to_sql(store.pool_generation))
          .run();
    }
    replace_backing(database, base.backing);
    transaction.commit();
    database.checkpoint();  // all of it is in the one file, and durable
  }
  if (::rename(draft.c_str(), path.c_str()) != 0) throw Error{errno, "make " + path};
  sync_entry(path);
}

bool Catalog::exists(const std::string& path) {
  if (::access(path.c_str(), F_OK) != 0) return false;
  require_sound_header(path);
  Database database(path, reading_mode(std::filesystem::path(path).parent_path()));
  if (is_blank(database)) return false;
  require_catalog(database);
  return true;
}

Catalog::Catalog(const std::string& path, Database::Mode mode, const Schema& schema)
    : schema_(schema), alone_(mode == Database::Mode::read_write_alone), database_(path, mode) {
  const bool for_writing = alone_ || mode == Database::Mode::read_write;
  if (::stat(path.c_str(), &opened_) != 0) throw Error{errno, path};
  if (for_writing) {
    upgraded_ = upgrade_schema(database_, schema);
  } else {
    require_schema(database_, schema);
  }
  check_rows();
  if (for_writing) require_values(database_);
  load_pages_ = database_.prepare(
      "SELECT page, bits FROM map_page WHERE layer = ? AND page >= ? AND page < ?");
  if (!for_writing) return;
  put_page_ = database_.prepare("INSERT OR REPLACE INTO map_page VALUES (?, ?, ?)");
  remove_page_ = database_.prepare("DELETE FROM map_page WHERE layer = ? AND page = ?");
  set_size_ = database_.prepare("UPDATE image SET size = ? WHERE id = ?");
  // A server that was killed may have left commits in the log that it had not synced. What is seen
  // of them from here on is relied upon: a flush that finds nothing new commits nothing (I3).
  database_.checkpoint();
  // SQLite makes its log with the first access, and syncs the directory with its first commit; but
  // it takes it for success if it cannot open the directory then (osOpenDirectory in os_unix.c).
  sync_entry(path);
}

std::unique_ptr<Database> Catalog::snapshot() {
  if (alone_) {
    const std::lock_guard lock(mutex_);
    return std::make_unique<Database>(database_.copy_in_memory());
  }
  auto reader = std::make_unique<Database>(path(), Database::Mode::read_only);
  reader->execute("BEGIN");
  return reader;
}

void Catalog::copy_to(const std::string& path) {
  const std::lock_guard lock(mutex_);
  database_.copy_to(path);
}

void Catalog::execute(const std::string& sql) {
  const std::lock_guard lock(mutex_);
  Transaction transaction(database_);
  database_.execute(sql);
  transaction.commit();
}

void Catalog::checkpoint() {
  // Else a connection by its path would put this log into another database.
  if (!is_in_place()) {
    throw damaged(path(),
                  "it is missing, or another file is in its place: what is written is lost "
                  "once the store is closed; copy the images out before that");
  }
  if (alone_) {
    const std::lock_guard lock(mutex_);
    database_.checkpoint();
    return;
  }
  // A connection of its own: a checkpoint syncs, and commits go on meanwhile.
  Database(path(), Database::Mode::read_write).checkpoint();
}

bool Catalog::is_in_place() const {
  struct stat now {};
  return ::stat(path().c_str(), &now) == 0 && now.st_dev == opened_.st_dev &&
         now.st_ino == opened_.st_ino;
}

void Catalog::check_rows() {
  require_fixed(database_);
  const StoreRow store = this->store();
  if (!ChunkSize::valid(store.chunk_size)) {
    throw damaged(path(), "chunk size " + std::to_string(store.chunk_size));
  }
  static_cast<void>(base());
}

StoreRow Catalog::store() {
  const std::lock_guard lock(mutex_);
  Statement select =
      database_.prepare("SELECT uuid, chunk_size, policy, created_ns FROM store WHERE id = 1");
  if (!select.step()) throw damaged(path(), "no store row");
  const int64_t chunk_size = std::clamp<int64_t>(select.integer(1), 0, UINT32_MAX);
  return {.uuid = select.text(0),
          .chunk_size = static_cast<uint32_t>(chunk_size),
          .policy = select.text(2),
          .created_ns = select.integer(3)};
}

BaseRow Catalog::base() {
  const std::lock_guard lock(mutex_);
  return read_base_row(database_);
}

BaseRow read_base_row(Database& database) {
  Statement select = database.prepare(
      "SELECT path, device, inode, size, mtime_ns, ctime_ns, fingerprint, checksum, "
      "written_ns, format, snapshot, virtual_size FROM base WHERE id = 1");
  if (!select.step()) throw damaged(database.path(), "no base row");
  BaseRow row;
  row.path = select.text(0);
  row.device = from_sql(select.integer(1));
  row.inode = from_sql(select.integer(2));
  row.size = from_sql(select.integer(3));
  row.mtime_ns = select.integer(4);
  row.ctime_ns = select.integer(5);
  row.fingerprint = copy_of(select.blob(6));
  row.checksum = copy_of(select.blob(7));
  if (!select.is_null(8)) row.written_ns = select.integer(8);
  row.format = format_of(select.text(9), database.path());
  if (!select.is_null(10)) row.snapshot = select.text(10);
  row.virtual_size = from_sql(select.integer(11));

  Statement files = database.prepare(
      "SELECT position, path, format, device, inode, size, mtime_ns, ctime_ns, fingerprint "
      "FROM backing ORDER BY position LIMIT 64");
  while (files.step()) {
    if (files.integer(0) != static_cast<int64_t>(row.backing.size()) + 1) {
      throw damaged(database.path(), "a row of table backing is missing, or too many");
    }
    row.backing.push_back({.path = files.text(1),
                           .device = from_sql(files.integer(3)),
                           .inode = from_sql(files.integer(4)),
                           .size = from_sql(files.integer(5)),
                           .mtime_ns = files.integer(6),
                           .ctime_ns = files.integer(7),
                           .fingerprint = copy_of(files.blob(8)),
                           .format = format_of(files.text(2), database.path())});
  }
  return row;
}

std::optional<BaseRow> peek_base_row(const std::string& path) {
  if (::access(path.c_str(), F_OK) != 0) return std::nullopt;
  require_sound_header(path);
  // Without a log nobody has anything to say but the file, and nothing is left beside it.
  const bool has_log = ::access((path + "-wal").c_str(), F_OK) == 0;
  Database database(path, has_log ? reading_mode(std::filesystem::path(path).parent_path())
                                  : Database::Mode::at_rest);
  if (is_blank(database)) return std::nullopt;
  require_catalog(database);
  constexpr int64_t kFirstWithFormats = 3;
  const int64_t version = database.pragma("user_version");
  if (version > current_schema().version) require_schema(database, current_schema());  // throws
  if (version >= kFirstWithFormats) return read_base_row(database);
  BaseRow row;  // raw, as all were
  Statement select = database.prepare("SELECT path FROM base WHERE id = 1");
  if (!select.step()) throw damaged(path, "no base row");
  row.path = select.text(0);
  return row;
}

std::vector<ImageRow> Catalog::images() {
  const std::lock_guard lock(mutex_);
  Statement select = database_.prepare(
      "SELECT id, name, layer, size, mode, uid, gid, atime_ns, mtime_ns, ctime_ns, btime_ns, "
      "space_limit FROM image ORDER BY id");
  std::vector<ImageRow> rows;
  while (select.step()) {
    ImageRow row{.id = from_sql(select.integer(0)),
                 .name = std::nullopt,
                 .layer = from_sql(select.integer(2)),
                 .size = from_sql(select.integer(3)),
                 .mode = static_cast<uint32_t>(select.integer(4)) & 0777U,
                 .uid = static_cast<uint32_t>(select.integer(5)),
                 .gid = static_cast<uint32_t>(select.integer(6)),
                 .atime_ns = select.integer(7),
                 .mtime_ns = select.integer(8),
                 .ctime_ns = select.integer(9),
                 .btime_ns = select.integer(10)};
    if (!select.is_null(1)) row.name = select.text(1);
    if (!select.is_null(11)) row.space_limit = from_sql(select.integer(11));
    if (row.id < 2 || row.id > INT64_MAX || row.size > kMaxImageSize) {
      throw damaged(path(), "image " + std::to_string(select.integer(0)) + ", its number or size");
    }
    if (row.name && !is_name(*row.name)) {
      throw damaged(path(), "image " + std::to_string(row.id) + " has the name '" +
                                printable(*row.name) + "', which no image can have");
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<LayerRow> Catalog::layers() {
  const std::lock_guard lock(mutex_);
  Statement select = database_.prepare(
      "SELECT id, parent_limit, has_file, parent, failure, own_chunks FROM layer ORDER BY id");
  std::vector<LayerRow> rows;
  while (select.step()) {
    if (!select.is_null(3)) throw damaged(path(), "a layer over a layer, which this version lacks");
    LayerRow row{.id = from_sql(select.integer(0)),
                 .parent_limit = from_sql(select.integer(1)),
                 .has_file = select.integer(2) != 0};
    if (!select.is_null(4)) row.failure = select.text(4);
    row.own_chunks = from_sql(select.integer(5));
    if (row.id > INT64_MAX || row.parent_limit > kMaxImageSize) {
      throw damaged(path(), "layer " + std::to_string(select.integer(0)) + ", its number or limit");
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

std::map<uint64_t, uint64_t> Catalog::requests() {
  const std::lock_guard lock(mutex_);
  Statement select = database_.prepare("SELECT id, image FROM request");
  std::map<uint64_t, uint64_t> requests;
  while (select.step()) requests.emplace(from_sql(select.integer(0)), from_sql(select.integer(1)));
  return requests;
}

uint64_t Catalog::last_layer() {
  const std::lock_guard lock(mutex_);
  // As SQLite takes it for the next number: its record of it counts no less than the rows.
  Statement select = database_.prepare(
      "SELECT max((SELECT coalesce(max(CAST(seq AS INTEGER)), 0) FROM sqlite_sequence WHERE name = "
      "'layer'), "
      "(SELECT coalesce(max(id), 0) FROM layer))");
  return select.step() ? from_sql(std::max<int64_t>(select.integer(0), 0)) : 0;
}

std::vector<uint64_t> Catalog::layers_without_file() {
  const std::lock_guard lock(mutex_);
  Statement select = database_.prepare(
      "SELECT layer, bits FROM map_page WHERE layer IN (SELECT id FROM layer WHERE has_file = 0)");
  std::vector<uint64_t> layers;
  while (select.step()) {
    const std::span<const std::byte> blob = select.blob(1);
    MapBits bits{};
    if (blob.size() == sizeof(bits)) std::memcpy(bits.data(), blob.data(), sizeof(bits));
    const uint64_t layer = from_sql(select.integer(0));
    if (last_present(bits) && (layers.empty() || layers.back() != layer)) layers.push_back(layer);
  }
  return layers;
}

std::optional<uint64_t> Catalog::last_page(uint64_t layer) {
  const std::lock_guard lock(mutex_);
  Statement select = database_.prepare("SELECT max(page) FROM map_page WHERE layer = ?");
  select.bind(1, to_sql(layer));
  if (!select.step() || select.is_null(0)) return std::nullopt;
  return from_sql(select.integer(0));
}

void Catalog::load_pages(uint64_t layer, uint64_t first, uint64_t count,
                         const std::function<bool(const MapBits&)>& valid,
                         const std::function<void(uint64_t, const MapBits&)>& receive) {
  const std::lock_guard lock(mutex_);
  // Not left in the middle, whatever is thrown: it would hold back checkpoints.
  struct Reset {
    Statement& statement;
    ~Reset() { statement.reset(); }
  } const reset{*load_pages_};
  load_pages_->bind(1, to_sql(layer)).bind(2, to_sql(first)).bind(3, to_sql(first + count));
  while (load_pages_->step()) {
    const std::span<const std::byte> blob = load_pages_->blob(1);
    MapBits bits{};
    const uint64_t page = from_sql(load_pages_->integer(0));
    if (blob.size() == sizeof(bits)) std::memcpy(bits.data(), blob.data(), sizeof(bits));
    if (blob.size() != sizeof(bits) || !valid(bits)) {
      throw damaged(path(),
                    "map page " + std::to_string(page) + " of layer " + std::to_string(layer));
    }
    receive(page, bits);
  }
}

void Catalog::change(const std::function<void(Change&)>& work) {
  for (bool first = true;; first = false) {
    try {
      Change change(*this);
      work(change);
      change.commit();
      return;
    } catch (const Error& error) {
      if (!first || !is_no_space(error.code()) || !make_room_) throw;
      // Once more in any case: another change may have found no space either, and just made room.
      make_room_();
    }
  }
}

Catalog::Change::Change(Catalog& catalog)
    : catalog_(catalog), lock_(catalog.mutex_), transaction_(catalog.database_) {}

void Catalog::Change::commit() {
  constexpr int kLongLog = 2000;
  transaction_.commit();
  if (catalog_.database_.log_pages() > kLongLog && catalog_.log_is_long_) catalog_.log_is_long_();
}

void Catalog::Change::set_base(const BaseRow& base) {
  Statement update = catalog_.database_.prepare(
      "UPDATE base SET path = ?, device = ?, inode = ?, size = ?, mtime_ns = ?, ctime_ns = ?, "
      "fingerprint = ?, checksum = ?, written_ns = ?, format = ?, snapshot = ?, virtual_size = ? "
      "WHERE id = 1");
  bind_base(update, base);
  update.run();
  replace_backing(catalog_.database_, base.backing);
}

void Catalog::Change::set_base_written(int64_t ns) {
  catalog_.database_.prepare("UPDATE base SET written_ns = ? WHERE id = 1").bind(1, ns).run();
}

uint64_t Catalog::Change::add_layer(uint64_t parent_limit) {
  catalog_.database_.prepare("INSERT INTO layer (parent_limit) VALUES (?)")
      .bind(1, to_sql(parent_limit))
      .run();
  return from_sql(catalog_.database_.last_insert_id());
}

uint64_t Catalog::Change::add_image(const ImageRow& image) {
  Statement insert = catalog_.database_.prepare(
      "INSERT INTO image (name, layer, size, mode, uid, gid, atime_ns, mtime_ns, ctime_ns, "
      "btime_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
  insert.bind(1, image.name.value())
      .bind(2, to_sql(image.layer))
      .bind(3, to_sql(image.size))
      .bind(4, int64_t{image.mode})
      .bind(5, int64_t{image.uid})
      .bind(6, int64_t{image.gid})
      .bind(7, image.atime_ns)
      .bind(8, image.mtime_ns)
      .bind(9, image.ctime_ns)
      .bind(10, image.btime_ns)
      .run();
  return from_sql(catalog_.database_.last_insert_id());
}

void Catalog::Change::set_image(const ImageRow& image) {
  catalog_.database_
      .prepare(
          "UPDATE image SET mode = ?, uid = ?, gid = ?, atime_ns = ?, mtime_ns = ?, ctime_ns = ? "
          "WHERE id = ?")
      .bind(1, int64_t{image.mode})
      .bind(2, int64_t{image.uid})
      .bind(3, int64_t{image.gid})
      .bind(4, image.atime_ns)
      .bind(5, image.mtime_ns)
      .bind(6, image.ctime_ns)
      .bind(7, to_sql(image.id))
      .run();
}

void Catalog::Change::set_size(uint64_t image, uint64_t size) {
  catalog_.set_size_->bind(1, to_sql(size)).bind(2, to_sql(image)).run();
}

void Catalog::Change::set_name(uint64_t image, const std::optional<std::string>& name) {
  Statement update = catalog_.database_.prepare("UPDATE image SET name = ? WHERE id = ?");
  if (name) {
    update.bind(1, *name);
  } else {
    update.bind_null(1);
  }
  update.bind(2, to_sql(image)).run();
}

void Catalog::Change::remove_image(uint64_t image, uint64_t layer) {
  catalog_.database_.prepare("DELETE FROM image WHERE id = ?").bind(1, to_sql(image)).run();
  remove_pages_from(layer, 0);
  catalog_.database_.prepare("DELETE FROM layer WHERE id = ?").bind(1, to_sql(layer)).run();
}

void Catalog::Change::record_request(uint64_t request, uint64_t image) {
  catalog_.database_.prepare("INSERT OR REPLACE INTO request VALUES (?, ?)")
      .bind(1, to_sql(request))
      .bind(2, to_sql(image))
      .run();
}

void Catalog::Change::forget_request(uint64_t request) {
  catalog_.database_.prepare("DELETE FROM request WHERE id = ?").bind(1, to_sql(request)).run();
}

void Catalog::Change::forget_requests() { catalog_.database_.execute("DELETE FROM request"); }

void Catalog::Change::set_parent_limit(uint64_t layer, uint64_t limit) {
  catalog_.database_.prepare("UPDATE layer SET parent_limit = ? WHERE id = ?")
      .bind(1, to_sql(limit))
      .bind(2, to_sql(layer))
      .run();
}

void Catalog::Change::set_failure(uint64_t layer, const std::optional<std::string>& failure) {
  Statement update = catalog_.database_.prepare("UPDATE layer SET failure = ? WHERE id = ?");
  if (failure) {
    update.bind(1, *failure);
  } else {
    update.bind_null(1);
  }
  update.bind(2, to_sql(layer)).run();
}

void Catalog::Change::set_space_limit(uint64_t image, std::optional<uint64_t> bytes) {
  Statement update = catalog_.database_.prepare("UPDATE image SET space_limit = ? WHERE id = ?");
  if (bytes) {
    update.bind(1, to_sql(*bytes));
  } else {
    update.bind_null(1);
  }
  update.bind(2, to_sql(image)).run();
}

void Catalog::Change::set_has_file(uint64_t layer) {
  catalog_.database_.prepare("UPDATE layer SET has_file = 1 WHERE id = ?")
      .bind(1, to_sql(layer))
      .run();
}

void Catalog::Change::put_page(uint64_t layer, uint64_t page, const MapBits& bits) {
  if (std::all_of(bits.begin(), bits.end(), [](uint64_t word) { return word == 0; })) {
    catalog_.remove_page_->bind(1, to_sql(layer)).bind(2, to_sql(page)).run();
    return;
  }
  catalog_.put_page_->bind(1, to_sql(layer))
      .bind(2, to_sql(page))
      .bind(3, std::as_bytes(std::span(bits)))
      .run();
}

void Catalog::Change::remove_pages_from(uint64_t layer, uint64_t page) {
  catalog_.database_.prepare("DELETE FROM map_page WHERE layer = ? AND page >= ?")
      .bind(1, to_sql(layer))
      .bind(2, to_sql(page))
      .run();
}

}  // namespace cowfs
