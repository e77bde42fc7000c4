#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "store/base_format.h"
#include "store/db.h"
#include "store/map_arena.h"
#include "store/pool_file.h"
#include "store/schema.h"
#include "store/slot_map.h"

namespace cowfs {

/// The time now as the catalog counts it: nanoseconds since the epoch.
int64_t catalog_now();

/// Times are nanoseconds since the epoch, sizes bytes.
struct StoreRow {
  std::string uuid;
  uint32_t chunk_size = 0;
  std::string policy;
  int64_t created_ns = 0;
  // Of a policy that has a pool.
  std::optional<uint64_t> pool_slots = std::nullopt;
  uint64_t pool_generation = 0;
};

/// How a file of the base was when the store last accepted it (I1).
struct BaseFileRow {
  std::string path;
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t size = 0;  ///< of the file
  int64_t mtime_ns = 0;
  int64_t ctime_ns = 0;
  std::vector<std::byte> fingerprint;
  BaseFormat format = BaseFormat::raw;  ///< found or given when the store was made
};

/// Likewise the base as a whole.
struct BaseRow : BaseFileRow {
  uint64_t virtual_size = 0;            ///< of the disk that it holds
  std::optional<std::string> snapshot;  ///< the internal one that is shown; none: the disk as it is
  std::vector<BaseFileRow> backing;     ///< its backing file, that one's, and so on
  std::vector<std::byte> checksum;      ///< of the whole disk; empty if none was recorded
  /// When somebody was seen to open it for writing; none: never, since it was last accepted.
  std::optional<int64_t> written_ns = std::nullopt;
};

struct LayerRow {
  uint64_t id = 0;
  uint64_t parent_limit = 0;  ///< bytes up to which the parent shows through (I12)
  bool has_file = false;      ///< whether a CoW file belongs to it
  /// Why writes to it fail (I8), for people; none: they do not.
  std::optional<std::string> failure = std::nullopt;
  uint64_t own_chunks = 0;  ///< slots of the pool that its map names
};

struct ImageRow {
  uint64_t id = 0;
  std::optional<std::string> name;  ///< none: unlinked, to be freed when nobody has it open
  uint64_t layer = 0;
  uint64_t size = 0;
  uint32_t mode = 0;  ///< permission bits
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t atime_ns = 0;
  int64_t mtime_ns = 0;
  int64_t ctime_ns = 0;
  int64_t btime_ns = 0;
  std::optional<uint64_t> space_limit = std::nullopt;  ///< bytes of its own that it may take
};

/// The store's SQLite database in terms of the product: all SQL on the tables is here, but for what
/// check_catalog asks of one that nobody trusts. Thread-safe: reads lock it for the call, changes
/// for the life of a Change.
class Catalog {
 public:
  /// Whether there is a catalog; one whose making was cut short does not count. EINVAL if the file
  /// is something else. Nothing is changed; the caller holds the store's lock.
  static bool exists(const std::string& path);

  /// Makes the file with its tables and rows. It is there as a whole or not at all, and durable
  /// when this returns. EEXIST if there is one. One at a time: the caller holds the store's lock.
  static void create(const std::string& path, const StoreRow& store, const BaseRow& base,
                     const Schema& schema = current_schema());

  /// Opens and, for writing, upgrades. Errors as Database and upgrade_schema; EUCLEAN if what it
  /// says cannot be.
  Catalog(const std::string& path, Database::Mode mode, const Schema& schema = current_schema());

  [[nodiscard]] const std::string& path() const { return database_.path(); }
  [[nodiscard]] int format_version() const { return schema_.version; }
  /// What others would see now that open it, for one reader: it does not hold up commits.
  [[nodiscard]] std::unique_ptr<Database> snapshot();
  /// Writes a consistent copy to `path`; see Database.
  void copy_to(const std::string& path);
  /// Runs SQL in one transaction, for a repair.
  void execute(const std::string& sql);
  /// Moves what it can of the write-ahead log into the file, and syncs it. Commits go on meanwhile,
  /// but for one that is opened alone. EUCLEAN if the file is not in its place any more.
  void checkpoint();

  /// Whether its path still leads to the file that was opened.
  [[nodiscard]] bool is_in_place() const;
  /// Whether opening it upgraded it.
  [[nodiscard]] bool upgraded() const { return upgraded_; }

  /// Calls `action` after each commit that leaves the write-ahead log long: a checkpoint is due.
  /// From the committing thread, with the catalog locked. Set before there are others.
  void when_log_is_long(std::function<void()> action) { log_is_long_ = std::move(action); }

  [[nodiscard]] StoreRow store();
  [[nodiscard]] BaseRow base();
  /// EUCLEAN if they hold what this program never writes (I10).
  [[nodiscard]] std::vector<ImageRow> images();
  [[nodiscard]] std::vector<LayerRow> layers();
  /// Requests on record, and the image that each made, or 0.
  [[nodiscard]] std::map<uint64_t, uint64_t> requests();
  /// The highest number that a layer ever had, 0 if there was none.
  [[nodiscard]] uint64_t last_layer();
  /// Layers whose map says that they have data, though they have no CoW file that counts.
  [[nodiscard]] std::vector<uint64_t> layers_without_file();
  /// The highest map page that the layer has; none if it has none.
  [[nodiscard]] std::optional<uint64_t> last_page(uint64_t layer);
  /// Calls `receive` for each page of the layer in [first, first + count). EUCLEAN if one is not
  /// `valid`.
  void load_pages(uint64_t layer, uint64_t first, uint64_t count,
                  const std::function<bool(const MapBits& bits)>& valid,
                  const std::function<void(uint64_t page, const MapBits& bits)>& receive);

  // Of a store with a pool, in catalog_pool.cc:

  /// How many slots the pool has. EUCLEAN if there is no such row.
  [[nodiscard]] uint64_t pool_slots();
  /// Likewise.
  [[nodiscard]] PoolGeneration pool_generation();
  /// Calls `receive` with the slots that are in use, in order.
  void load_used_slots(const std::function<void(SlotRun run)>& receive);

  /// Called when a commit finds no space, from the committing thread: makes room. Set before there
  /// are others.
  void when_full(std::function<void()> make_room) { make_room_ = std::move(make_room); }

  class Change;
  /// Runs `work` on a Change and commits it; durable when it returns. If there is no space for it,
  /// all is done once more after when_full.
  void change(const std::function<void(Change&)>& work);

  /// One transaction: holds the catalog's lock, is rolled back unless committed.
  class Change {
   public:
    explicit Change(Catalog& catalog);

    void set_base(const BaseRow& base);
    void set_base_written(int64_t ns);
    /// Return the new id.
    uint64_t add_layer(uint64_t parent_limit);
    uint64_t add_image(const ImageRow& image);
    /// Mode, owner and times.
    void set_image(const ImageRow& image);
    void set_size(uint64_t image, uint64_t size);
    /// None: unlinked.
    void set_name(uint64_t image, const std::optional<std::string>& name);
    void remove_image(uint64_t image, uint64_t layer);
    void set_parent_limit(uint64_t layer, uint64_t limit);
    void set_has_file(uint64_t layer);
    void set_failure(uint64_t layer, const std::optional<std::string>& failure);
    void set_space_limit(uint64_t image, std::optional<uint64_t> bytes);
    /// An empty page takes no row.
    void put_page(uint64_t layer, uint64_t page, const MapBits& bits);
    void remove_pages_from(uint64_t layer, uint64_t page);

    // Of a store with a pool, in catalog_pool.cc:

    /// What the catalog has of a page; all absent if it has none.
    [[nodiscard]] MapBits map_page(uint64_t layer, uint64_t page);
    /// Calls `visit` for each page of the layer from `first` on.
    void for_each_page(uint64_t layer, uint64_t first,
                       const std::function<void(const MapBits& bits)>& visit);
    /// Marks slots as in use, or as free. EUCLEAN if one of them is so already.
    void use_slots(std::span<const SlotRun> runs, bool in_use);
    void add_own_chunks(uint64_t layer, int64_t chunks);
    void set_pool_slots(uint64_t slots);
    void set_pool_generation(const PoolGeneration& generation);

    /// That a request was done, by this change, and which image it made, or 0; see Store.
    void record_request(uint64_t request, uint64_t image);
    void forget_request(uint64_t request);
    void forget_requests();

    /// Durable when it returns.
    void commit();

   private:
    Catalog& catalog_;
    std::unique_lock<std::mutex> lock_;
    Transaction transaction_;
  };

 private:
  void check_rows();

  const Schema& schema_;
  const bool alone_;  // no other connection can be made
  std::mutex mutex_;
  Database database_;
  struct stat opened_ {};  // the file
  bool upgraded_ = false;
  std::function<void()> log_is_long_;
  std::function<void()> make_room_;
  // Of the flush path, prepared once.
  std::optional<Statement> put_page_;
  std::optional<Statement> remove_page_;
  std::optional<Statement> load_pages_;
  std::optional<Statement> set_size_;
};

/// The row of the base and those of its backing files. EUCLEAN if they cannot be (I10).
BaseRow read_base_row(Database& database);
/// What a catalog of any version that can be upgraded says of its base, as far as it is needed to
/// open that; nothing if there is no catalog. Changes nothing; the caller holds the store's lock.
std::optional<BaseRow> peek_base_row(const std::string& path);

/// How the catalog in `directory` is opened for writing: alone where its host could not have a
/// mapped file changed on a full disk (mapped_change_takes_space).
Database::Mode writing_mode(const std::string& directory);
/// Likewise for reading, by who holds the store's lock.
Database::Mode reading_mode(const std::string& directory);

}  // namespace cowfs
