#pragma once

#include <spdlog/fwd.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "store/base.h"
#include "store/catalog.h"
#include "store/check.h"
#include "store/committer.h"
#include "store/file.h"
#include "store/host_fs.h"
#include "store/image.h"
#include "store/live_images.h"
#include "store/live_memory.h"
#include "store/map_arena.h"
#include "store/policy.h"
#include "store/pool_file.h"
#include "store/reserve.h"
#include "store/store_lock.h"

namespace cowfs {

class CheckReport;
class Doubt;

/// What a store was made with, and what becomes of it.
struct StoreFacts {
  std::string directory;
  std::string uuid;
  std::string base_path;
  BaseFormat base_format = BaseFormat::raw;
  std::optional<std::string> base_snapshot;
  std::vector<BaseLink> backing;  ///< below the base: its backing file, that one's, and so on
  uint64_t base_size = 0;         ///< bytes of the disk
  uint32_t chunk_size = 0;
  std::string policy;
  int format_version = 0;
};

/// A store open for writing: the catalog, the base, and the images by number and by name.
/// Thread-safe. Image numbers start at 2, are stable and never used again.
class Store {
 public:
  struct Options {
    std::string directory;  ///< absolute
    std::string base_path;  ///< empty: the one that the catalog names
    /// Its format and snapshot: refuse a store that was made with others; for making one.
    std::optional<BaseFormat> base_format;
    std::optional<std::string> base_snapshot;
    std::vector<std::string> allow_backing;  ///< see BaseOptions
    std::optional<uint32_t> chunk_size;      ///< refuse a store that has another; for making one
    std::optional<std::string> policy;       ///< likewise
    std::optional<std::string> pool;         ///< where the pool lies, absolute; of a store with one
    std::optional<uint64_t> pool_size;       ///< bytes; for making one in a file
    bool create = false;                     ///< make the store if there is none
    bool accept_changed_base = false;
    bool names_only = false;  ///< without the base, which may be gone: images can be found, removed
                              ///< and renamed, and neither used nor made
    std::string mount;        ///< for the lock's text; empty: a command
    HeldLock lock_held;       ///< the store's lock, if an earlier process of this mount took it
    std::shared_ptr<spdlog::logger> log;
    FaultHook fault_hook;  ///< see store/file.h
    /// Called once the base is open and the directory there, before anything in it is read: for who
    /// then gives up all other files. The base is none of `names_only`.
    std::function<void(const Base* base)> confine;
    /// Does `look`, which reads in the store, where it can do no harm, and returns what it returns:
    /// the formats of the base are on record, and have to be known before `confine`. None: here.
    std::function<std::optional<BaseRow>(const std::function<std::optional<BaseRow>()>& look)>
        apart;
    /// Where what the catalog lacks is kept. If a process before this one left something there,
    /// this object goes on where that one was killed.
    std::shared_ptr<LiveMemory> live = std::make_shared<LiveMemory>();
    const Schema* schema = &current_schema();
    std::span<const Policy> policies = cowfs::policies();  ///< that there are
  };

  /// Opens the store, and with `create` makes it if it is not there. No repair is needed after a
  /// crash (I6); left-over files are removed. Each way to fail has its own Error.
  explicit Store(Options options);
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;
  /// Ends without flushing; see close.
  ~Store();

  /// Makes everything durable and ends the background work. False if something was lost; it is
  /// logged then. Nothing may be in use any more.
  bool close();
  /// After close: failed images (I8) take writes again when the store is opened next. What keeps
  /// one from that is logged.
  void clear_failures();

  /// Removes the store again if this object made it and it holds no image: for who then fails to
  /// mount it. Only the destructor may be called afterwards.
  void unmake_if_new();

  /// After taking over from a process that was killed, once what it had open is in use again: frees
  /// the unlinked images that nobody uses.
  void free_unused();

  /// Tells those who wait for the store that it is about to be given up.
  void announce_ending();

  [[nodiscard]] const StoreLock& lock() const { return *lock_; }
  [[nodiscard]] const StoreFacts& facts() const { return facts_; }
  /// Not with names_only.
  [[nodiscard]] const Base& base() const { return *base_; }
  /// Logs that somebody other than this program writes to a file of the base (`what`: "was opened
  /// for writing"), and remembers it until the base is accepted anew (I1).
  void note_base_written(const std::string& path, const std::string& what);
  /// When that was, nanoseconds since the epoch.
  [[nodiscard]] std::optional<int64_t> base_written_ns() { return catalog_->base().written_ns; }
  /// Of what chunks are taken from: the pool, or the file system that the store lies on.
  [[nodiscard]] Space space() const;
  /// Of a store that has one, else null.
  [[nodiscard]] Pool* pool() { return policy_at_work_->pool(); }
  /// Whether the pool's device was larger, when the store was opened, than it had been.
  [[nodiscard]] bool pool_has_grown() const { return pool_has_grown_; }

  // ---- images ----------------------------------------------------------------------------------

  struct Entry {
    std::string name;
    std::shared_ptr<Image> image;
  };

  [[nodiscard]] std::shared_ptr<Image> find(std::string_view name);
  /// Also unlinked ones that are in use.
  [[nodiscard]] std::shared_ptr<Image> find(uint64_t id);
  /// None if it was unlinked.
  [[nodiscard]] std::optional<std::string> name_of(uint64_t id);
  /// At most `limit` entries with numbers above `after`, by number.
  [[nodiscard]] std::vector<Entry> list(uint64_t after, size_t limit);
  [[nodiscard]] size_t image_count();
  /// How many of them take no writes (I8) or cannot be used at all, as far as is known.
  [[nodiscard]] size_t failed_images();

  struct NewImage {
    std::string name;
    bool empty = false;  ///< size 0 and nothing of the base, instead of the base's copy
    std::optional<uint64_t> size;
    uint32_t mode = 0644;
    uint32_t uid = 0;
    uint32_t gid = 0;
  };
  // What follows is atomic, and durable when it returns. A `request` that is not 0 is recorded with
  // the change, in one transaction: its answer may be lost with this process, and the request come
  // again to the one that takes over. Numbers are not used again while the store's LiveMemory
  // lasts.

  /// EEXIST if the name is taken, EINVAL for a bad one. Not with names_only.
  std::shared_ptr<Image> create(const NewImage& image, uint64_t request = 0);
  /// ENOENT. An image in use lives on without a name until its last use ends.
  void remove(std::string_view name, uint64_t request = 0);
  enum class Rename { replace, no_replace, exchange };
  /// ENOENT, EEXIST, EINVAL.
  void rename(std::string_view from, std::string_view to, Rename how, uint64_t request = 0);

  /// Whether a process before this one has done this request: the image that it made, or 0.
  [[nodiscard]] std::optional<uint64_t> done(uint64_t request) const;
  /// A recorded request has its answer, and does not come again.
  void answered(uint64_t request);

  // ---- check -----------------------------------------------------------------------------------

  /// Verifies the store while it is in use, as check_store does one at rest; see there. Repairs
  /// leaks only. One at a time.
  CheckResult check(const CheckOptions& options);
  /// See store/check_base.h.
  void record_base(const CheckOptions& options);
  bool compare_base(const CheckOptions& options);

  /// Paths of what somebody deleted or replaced beneath this object: the catalog, CoW files.
  [[nodiscard]] std::vector<std::string> missing();

  /// Bytes of private space of all images.
  [[nodiscard]] uint64_t own_bytes();

 private:
  struct Names {
    std::map<uint64_t, Entry> by_id;  // an unlinked image has an empty name
    std::unordered_map<std::string, uint64_t> by_name;
  };

  void take_lock();
  /// As it was made, or is to be made if nothing is recorded.
  void open_base(const std::optional<BaseRow>& recorded);
  void require_same_making(const BaseRow& recorded) const;
  void confine();
  /// `parent`: the directory's, if it could be opened.
  void make(const Schema& schema, const File* parent);
  /// Opens what SQLite makes files for: on a full disk the reserve has room for them.
  void with_room(const std::function<void()>& open);
  void open_catalog();
  void check_base();
  void load();
  /// What a process before this one left in LiveMemory.
  void inherit();
  std::vector<std::shared_ptr<Image>> all_images();
  /// Opens the pool, or makes its file, as far as that has to be done before confine.
  void open_pool(bool there);
  /// EINVAL if a pool was named for a policy that has none.
  void require_pool_wanted() const;
  /// How many slots a new pool will have. EINVAL if there is none for it.
  [[nodiscard]] uint64_t plan_pool(ChunkSize chunk) const;
  /// Makes room for them.
  void make_pool(ChunkSize chunk, uint64_t slots);
  /// Sees to it that the pool is this store's, as the catalog knows it. Changes nothing.
  void use_pool();
  /// Makes the pool and the catalog say that they were opened together, before either is changed.
  void claim_pool();
  void begin_pool_generation();
  /// What the pool begins with in this generation.
  [[nodiscard]] PoolHeader pool_header(uint64_t generation) const;
  void link_pool();
  void unmake_pool();
  /// What the policy takes over of a layer's file; whether the rows have changed. Where it is
  /// refused, says why, by the image's number.
  bool adopt(ImageRow& image, LayerRow& layer, std::map<uint64_t, std::string>& refusals);
  /// Puts that into the catalog.
  void record_adopted(Image& made, const ImageRow& image, const LayerRow& layer);
  /// EBUSY if another program has the image's file open.
  static void require_not_elsewhere(const Image& image);
  /// Takes back an image whose making has failed; false if the catalog does not forget it.
  bool unmake(const ImageRow& row, uint64_t request);
  /// EUCLEAN, naming the image, if a layer has lost its CoW file.
  void require_files(const std::vector<LayerRow>& layers,
                     const std::vector<ImageRow>& images) const;
  void remove_left_overs(const std::vector<LayerRow>& layers);
  /// Of a catalog that was deleted or replaced beneath this object.
  void rescue_catalog();
  /// Part of a transaction: all that the catalog has of an image.
  void take_from_catalog(Catalog::Change& change, const Image& image);
  std::shared_ptr<Image> make_image(const ImageRow& row, const LayerRow& layer);
  /// Whether the files that hold what is durable are still to be found; logs those that are not.
  void free_unlinked(Image& image);
  bool close_idle();
  void forget(Image& image);
  bool has_name(const Image& image);
  /// Commits `work`, which returns the image that it made or 0; records the request with it, and
  /// forgets those that have been answered.
  void change_names(uint64_t request, const std::function<uint64_t(Catalog::Change&)>& work);
  /// `title` is what it was called.
  void remove_files(Image& image, const std::string& title);

  // store_check.cc
  std::optional<std::set<uint64_t>> check_rows_in_use(CheckReport& report);
  void check_files_in_use(std::set<uint64_t> known, CheckReport& report);
  void check_pool_in_use(CheckReport& report);
  void check_images_in_use(CheckReport& report, const Doubt& doubt);

  Options options_;
  std::optional<StoreLock> lock_;
  std::unique_ptr<Base> base_;
  std::unique_ptr<Reserve> reserve_;
  std::unique_ptr<Catalog> catalog_;
  MapArena arena_;
  const std::shared_ptr<LiveImages> live_images_;
  StoreFacts facts_;
  std::optional<File> layers_directory_;
  std::optional<Image::Context> image_context_;
  const Policy* policy_ = nullptr;
  std::unique_ptr<PoolFile> pool_file_;
  std::optional<BaseRow> base_row_;  // of the base that is open
  std::optional<PolicyContext> policy_context_;
  std::unique_ptr<StorePolicy> policy_at_work_;
  PoolFile::State pool_state_ = PoolFile::State::current;  // as it was found
  bool pool_has_grown_ = false;
  bool made_here_ = false;
  bool log_is_astray_ = false;  // beside a catalog that it does not belong to

  // One change of names at a time. Before names_ and the catalog, which are not held together.
  std::mutex change_mutex_;
  Synchronized<Names> names_;
  std::map<uint64_t, uint64_t> done_;  // what an earlier process had recorded
  Synchronized<std::set<uint64_t>> answered_;
  std::unique_ptr<Committer> committer_;
};

/// What can be said of a store without opening it for writing. Nothing is changed by looking. Of
/// one whose holder has its catalog to himself (writing_mode) only who that is; facts are empty
/// then.
struct StoreSummary {
  StoreFacts facts;
  std::optional<int64_t> base_written_ns;  ///< see Store
  std::vector<ImageRow> images;
  std::map<uint64_t, std::string> failures;  ///< by layer, of those that take no writes (I8)
  struct PoolFacts {
    std::string path;
    bool is_device = false;
    uint64_t size = 0;  ///< bytes
    uint64_t free = 0;  ///< bytes
    /// Why the store cannot be opened with it, in words; empty: it can be, or it is open.
    std::string problem;
  };
  std::optional<PoolFacts> pool;            ///< of a store that has one
  std::map<uint64_t, uint64_t> pool_bytes;  ///< by layer, of those that have chunks in it
  std::optional<Holder> holder;
};
StoreSummary summarize_store(const std::string& directory);

/// What the facts say of the base.
void set_base_facts(StoreFacts& facts, const BaseRow& base);

/// What its catalog says of the store.
StoreFacts facts_of(const std::string& directory, Catalog& catalog);

/// The path of a layer's CoW file; none if it has none yet.
std::optional<std::string> cow_file(const std::string& directory, uint64_t layer);

}  // namespace cowfs
