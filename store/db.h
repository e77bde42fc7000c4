#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

struct sqlite3;
struct sqlite3_stmt;

namespace cowfs {

/// A prepared statement. Bind by position from 1, step, read columns from 0. Not thread-safe, as
/// its Database. Errors are thrown as Error with the file's path.
class Statement {
 public:
  Statement& bind(int position, int64_t value);
  Statement& bind(int position, std::string_view text);
  Statement& bind(int position, std::span<const std::byte> blob);
  Statement& bind_null(int position);

  /// True while there is a row. The statement is reset after the last one.
  bool step();
  /// Steps through a statement that returns no rows, and resets it.
  void run();
  void reset();

  [[nodiscard]] int64_t integer(int column) const;
  [[nodiscard]] std::string text(int column) const;
  /// Valid until the next step or reset.
  [[nodiscard]] std::span<const std::byte> blob(int column) const;
  [[nodiscard]] bool is_null(int column) const;

 private:
  friend class Database;
  Statement(sqlite3* database, sqlite3_stmt* statement);
  void check(int code) const;

  struct Finalize {
    void operator()(sqlite3_stmt* statement) const noexcept;
  };
  sqlite3* database_;
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
};

/// One connection to a SQLite file, and the only user of sqlite3.h. Not thread-safe: who shares it
/// locks it. Opened with journal_mode=WAL, synchronous=FULL (both read back: a distribution may
/// have changed the defaults), no automatic checkpoints, defensive against hostile files (I10).
class Database {
 public:
  enum class Mode {
    create,  ///< as read_write_alone
    read_write,
    read_write_alone,  ///< nobody else can open it meanwhile (EBUSY, after 10 s): what SQLite else
                       ///< shares in a mapped file, it keeps in memory
    read_only,         ///< may leave SQLite's files behind where no other connection is open
    at_rest,  ///< read-only, while the caller keeps all writers away: changes nothing at all
  };

  /// ENOENT if missing (but for `create`), EINVAL if it is not a SQLite file, EUCLEAN if damaged.
  /// `at_rest`: EROFS if a write-ahead log is to be read and the file cannot be written to, which
  /// SQLite needs for that. `path` itself must not be a symbolic link; folders on the way may be.
  Database(const std::string& path, Mode mode);

  [[nodiscard]] const std::string& path() const { return path_; }

  void execute(const std::string& sql);
  [[nodiscard]] Statement prepare(const std::string& sql);
  [[nodiscard]] int64_t last_insert_id() const;
  /// The integer that `PRAGMA name` answers.
  [[nodiscard]] int64_t pragma(const std::string& name);

  /// Pages in the write-ahead log as this connection's last commit left it.
  [[nodiscard]] int log_pages() const { return log_pages_; }

  /// Moves what it can of the write-ahead log into the file without making writers wait; returns
  /// the pages that the log holds still.
  int64_t checkpoint();

  /// Ends a transaction that is open, without effect.
  void roll_back();

  /// Writes a consistent copy of the database to `path`, which must not exist or be empty.
  void copy_to(const std::string& path);
  /// A copy that is in memory alone.
  [[nodiscard]] Database copy_in_memory();

  /// Has SQLite read the system's random numbers now, which it else does when it first needs some.
  static void seed_random();

 private:
  Database() : path_(":memory:") {}
  struct Close {
    void operator()(sqlite3* database) const noexcept;
  };
  std::string path_;
  int log_pages_ = 0;  // before the connection, which writes to it
  std::unique_ptr<sqlite3, Close> database_;
};

/// BEGIN IMMEDIATE; rolled back unless committed.
class Transaction {
 public:
  explicit Transaction(Database& database);
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  ~Transaction();

  /// Durable when it returns (I3).
  void commit();

 private:
  Database& database_;
  bool open_ = true;
};

}  // namespace cowfs
