#include "store/db.h"

#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "store/error.h"
#include "store/sabotage.h"

namespace cowfs {
namespace {

int errno_of(sqlite3* database, int code) {
  switch (code & 0xff) {
    case SQLITE_FULL:
      return ENOSPC;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return EBUSY;
    case SQLITE_READONLY:
      return EROFS;
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return EACCES;
    case SQLITE_NOMEM:
      return ENOMEM;
    case SQLITE_NOTADB:
      return EINVAL;
    case SQLITE_CORRUPT:
      return EUCLEAN;
    case SQLITE_CONSTRAINT:
      return EEXIST;
    case SQLITE_IOERR: {
      // SQLite knows ENOSPC of writes only; nothing was synced in vain where there is no space.
      const int system = database != nullptr ? sqlite3_system_errno(database) : 0;
      const bool wrote = code == SQLITE_IOERR_WRITE || code == SQLITE_IOERR_SHMSIZE ||
                         code == SQLITE_IOERR_SHMOPEN || code == SQLITE_IOERR_SHMMAP;
      return wrote && is_no_space(system) ? ENOSPC : EIO;
    }
    case SQLITE_CANTOPEN: {
      const int system = database != nullptr ? sqlite3_system_errno(database) : 0;
      return system != 0 ? system : ENOENT;
    }
    default:
      return EIO;
  }
}

[[noreturn]] void fail(sqlite3* database, int code, const std::string& path) {
  // Taken at once: a later call on the connection overwrites the text.
  const char* text = database != nullptr ? sqlite3_errmsg(database) : sqlite3_errstr(code);
  const int number = errno_of(database, code);
  std::string message = path + ": ";
  if ((code & 0xff) == SQLITE_CANTOPEN) {
    message += error_text(number);
  } else {
    message += text;
  }
  throw Error::with_message(number, message);
}

/// The path without links but for its last part: SQLite refuses links anywhere in it.
std::string resolved(const std::string& path) {
  const std::filesystem::path whole(path);
  const std::filesystem::path parent = whole.has_parent_path() ? whole.parent_path() : ".";
  std::error_code error;
  const std::filesystem::path real = std::filesystem::canonical(parent, error);
  return error ? path : (real / whole.filename()).string();
}

/// The name of a file that SQLite is to take for one that never changes: it then makes no files
/// beside it, and looks at no log.
std::string immutable(const std::string& path) {
  std::string uri = "file:";
  for (const char c : path) {
    uri += c == '%' ? "%25" : c == '?' ? "%3f" : c == '#' ? "%23" : std::string(1, c);
  }
  return uri + "?immutable=1";
}

bool has_log(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path + "-wal", error);
  return !error && size > 0;
}

std::string path_of(sqlite3* database) {
  const char* path = sqlite3_db_filename(database, "main");
  return path != nullptr ? path : "database";
}

}  // namespace

void Statement::Finalize::operator()(sqlite3_stmt* statement) const noexcept {
  sqlite3_finalize(statement);
}

Statement::Statement(sqlite3* database, sqlite3_stmt* statement)
    : database_(database), statement_(statement) {}

void Statement::check(int code) const {
  if (code == SQLITE_OK) return;
  fail(database_, code, path_of(database_));
}

Statement& Statement::bind(int position, int64_t value) {
  check(sqlite3_bind_int64(statement_.get(), position, value));
  return *this;
}

Statement& Statement::bind(int position, std::string_view text) {
  check(sqlite3_bind_text64(statement_.get(), position, text.data(), text.size(), SQLITE_TRANSIENT,
                            SQLITE_UTF8));
  return *this;
}

Statement& Statement::bind(int position, std::span<const std::byte> blob) {
  check(
      sqlite3_bind_blob64(statement_.get(), position, blob.data(), blob.size(), SQLITE_TRANSIENT));
  return *this;
}

Statement& Statement::bind_null(int position) {
  check(sqlite3_bind_null(statement_.get(), position));
  return *this;
}

bool Statement::step() {
  const int code = sqlite3_step(statement_.get());
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) {
    sqlite3_reset(statement_.get());
    return false;
  }
  try {
    check(code);
  } catch (...) {
    sqlite3_reset(statement_.get());
    throw;
  }
  return false;
}

void Statement::run() {
  while (step()) {
  }
}

void Statement::reset() { sqlite3_reset(statement_.get()); }

int64_t Statement::integer(int column) const {
  return sqlite3_column_int64(statement_.get(), column);
}

std::string Statement::text(int column) const {
  const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement_.get(), column));
  const auto size = static_cast<size_t>(sqlite3_column_bytes(statement_.get(), column));
  return text != nullptr ? std::string(text, size) : std::string();
}

std::span<const std::byte> Statement::blob(int column) const {
  const auto* data = static_cast<const std::byte*>(sqlite3_column_blob(statement_.get(), column));
  return {data, static_cast<size_t>(sqlite3_column_bytes(statement_.get(), column))};
}

bool Statement::is_null(int column) const {
  return sqlite3_column_type(statement_.get(), column) == SQLITE_NULL;
}

void Database::Close::operator()(sqlite3* database) const noexcept { sqlite3_close_v2(database); }

Database::Database(const std::string& path, Mode mode) : path_(path) {
  const bool at_rest = mode == Mode::at_rest;
  const bool log_at_rest = at_rest && has_log(path);
  if (log_at_rest && ::access(path.c_str(), W_OK) != 0) {
    throw Error::with_message(EROFS, path +
                                         ": has a write-ahead log, which is left by a crash and "
                                         "cannot be read where nothing can be written; mount the "
                                         "store once where it can, or a copy of it");
  }
  int flags = SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_EXRESCODE;
  // What is in memory has no place, and no log.
  const bool in_memory = path == ":memory:";
  std::string name = in_memory ? path : resolved(path);
  if (at_rest && !log_at_rest) {
    name = immutable(name);
    flags |= SQLITE_OPEN_READONLY | SQLITE_OPEN_URI;
  } else {
    flags |= mode == Mode::read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
    if (mode == Mode::create) flags |= SQLITE_OPEN_CREATE;
  }
  sqlite3* database = nullptr;
  const int code = sqlite3_open_v2(name.c_str(), &database, flags, nullptr);
  database_.reset(database);
  if (code != SQLITE_OK) fail(database, code, path_);

  // A store that a stranger hands to us cannot make SQLite run what it brought along.
  sqlite3_db_config(database, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(database, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  sqlite3_busy_timeout(database, 10'000);
  execute("PRAGMA cell_size_check = ON");
  execute("PRAGMA temp_store = MEMORY");
  const bool alone = mode == Mode::create || mode == Mode::read_write_alone;
  // Before anything is read: https://www.sqlite.org/wal.html#noshm
  if (alone || log_at_rest) execute("PRAGMA locking_mode = EXCLUSIVE");
  if (log_at_rest) {
    // The log is read into memory and left as it is.
    sqlite3_db_config(database, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
  }
  if (mode == Mode::read_only || at_rest || in_memory) return;

  Statement wal = prepare("PRAGMA journal_mode = WAL");
  wal.step();
  if (wal.text(0) != "wal") {
    throw Error::with_message(EOPNOTSUPP, path_ + ": SQLite cannot use a write-ahead log here");
  }
  wal.reset();
  constexpr int kNormal = 1;
  constexpr int kFull = 2;
  const int level = sabotaged(Sabotage::synchronous_normal) ? kNormal : kFull;
  execute("PRAGMA synchronous = " + std::to_string(level));
  if (pragma("synchronous") != level) {
    throw Error::with_message(EOPNOTSUPP, path_ + ": SQLite refuses synchronous=FULL");
  }
  // Checkpoints sync the whole file: they are made off the flush path, by checkpoint(). A hook of
  // our own takes the place of the automatic ones.
  sqlite3_wal_hook(
      database,
      [](void* pages, sqlite3*, const char*, int now) {
        *static_cast<int*>(pages) = now;
        return SQLITE_OK;
      },
      &log_pages_);
}

void Database::execute(const std::string& sql) {
  const int code = sqlite3_exec(database_.get(), sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) fail(database_.get(), code, path_);
}

Statement Database::prepare(const std::string& sql) {
  sqlite3_stmt* statement = nullptr;
  const int code = sqlite3_prepare_v3(database_.get(), sql.c_str(), static_cast<int>(sql.size()),
                                      SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  if (code != SQLITE_OK) fail(database_.get(), code, path_);
  return {database_.get(), statement};
}

int64_t Database::last_insert_id() const { return sqlite3_last_insert_rowid(database_.get()); }

int64_t Database::pragma(const std::string& name) {
  Statement statement = prepare("PRAGMA " + name);
  return statement.step() ? statement.integer(0) : 0;
}

int64_t Database::checkpoint() {
  int logged = 0;
  int moved = 0;
  const int code = sqlite3_wal_checkpoint_v2(database_.get(), nullptr, SQLITE_CHECKPOINT_PASSIVE,
                                             &logged, &moved);
  if (code != SQLITE_OK && (code & 0xff) != SQLITE_BUSY) fail(database_.get(), code, path_);
  return logged - moved;
}

void Database::copy_to(const std::string& path) {
  Statement statement = prepare("VACUUM INTO ?");
  statement.bind(1, path).run();
}

Database Database::copy_in_memory() {
  Database copy;
  sqlite3* memory = nullptr;
  const int code =
      sqlite3_open_v2(":memory:", &memory, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, nullptr);
  copy.database_.reset(memory);
  if (code != SQLITE_OK) fail(memory, code, path_);
  sqlite3_backup* backup = sqlite3_backup_init(memory, "main", database_.get(), "main");
  if (backup == nullptr) fail(memory, sqlite3_errcode(memory), path_);
  constexpr int kAll = -1;
  sqlite3_backup_step(backup, kAll);
  const int end = sqlite3_backup_finish(backup);
  if (end != SQLITE_OK) fail(memory, end, path_);
  return copy;
}

void Database::seed_random() {
  sqlite3_initialize();
  unsigned char byte = 0;
  sqlite3_randomness(sizeof(byte), &byte);
}

void Database::roll_back() {
  // Nothing is left to do where SQLite has rolled back by itself, as it does after I/O errors.
  if (sqlite3_get_autocommit(database_.get()) == 0) execute("ROLLBACK");
}

Transaction::Transaction(Database& database) : database_(database) {
  database_.roll_back();  // what could not be, for want of memory say
  database_.execute("BEGIN IMMEDIATE");
}

Transaction::~Transaction() {
  if (open_) attempt([this] { database_.roll_back(); });
}

void Transaction::commit() {
  database_.execute("COMMIT");
  open_ = false;
}

}  // namespace cowfs
