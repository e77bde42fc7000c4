// Policy `sparse`
//
// The CoW file `layers/<id>.cow` mirrors the image: chunk c lies at c * chunk size, and only the
// map says whether its bytes mean something (I12). A present chunk was always written whole, so
// there is no hole under it. The map lies in the catalog's map_page.
//
// The file is made at the first write. It is synced, and its directory, before the first row that
// speaks of it (I3); a file without such a row is a left-over and is emptied when it is met again.
// The file's length is not kept in step with the image's size.
//
// Freed space goes from freed_ (the map says so) to freeing_ (a commit is on its way that says so)
// to freed_for_good_ (the catalog says so), and the caller reclaims it. By then a chunk may have
// been written and freed again, and the catalog may say that it is present: what is in freed_ or
// freeing_ is never punched (I12). What is in none of the three, not present, and holds data, is a
// leak.
//
// Reserved space (fallocate) reads as a hole, as does what lseek(2) finds unwritten: it is neither
// a leak nor data.

#include "store/policy_sparse.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>

#include "store/descriptor.h"
#include "store/error.h"
#include "store/host_fs.h"
#include "store/range_set.h"
#include "store/sabotage.h"

namespace cowfs {
namespace {

using FreedRanges = std::vector<std::pair<uint64_t, uint64_t>>;

struct SparseChanges : Layer::Changes {
  std::vector<PageCopy> pages;
  std::vector<uint64_t> taken;  // pages whose marks were cleared
  FreedRanges freed;
  std::optional<uint64_t> remove_pages_from;
  bool names_file = false;  // the catalog does not know of the file yet

  [[nodiscard]] bool empty() const override {
    return pages.empty() && !remove_pages_from && !names_file;
  }
};

const SparseChanges& sparse(const Layer::Changes& changes) {
  return static_cast<const SparseChanges&>(changes);
}

class SparseLayer final : public Layer {
 public:
  SparseLayer(const PolicyContext& context, const LayerRow& row)
      : Layer(row.parent_limit),
        chunk_(context.chunk),
        arena_(context.arena),
        catalog_(context.catalog),
        hook_(context.hook),
        entries_(context.entries),
        close_idle_(&context.close_idle),
        id_(row.id),
        directory_(context.directory),
        read_only_(context.read_only),
        has_file_(row.has_file),
        data_dirty_(row.has_file) {}

  void activate() override {
    // A file that the catalog does not know of yet is left over, unless the map that was left with
    // it does.
    if (has_file_ || (inherits() && ::access(path().c_str(), F_OK) == 0)) {
      const int access = read_only_ ? O_RDONLY : O_RDWR;
      owned_file_ = open_file(access, 0);
      file_ = owned_file_.get();
    }
    map_ = std::make_unique<ChunkMap>(
        arena_, id_, [this](uint64_t first, uint64_t count, const ChunkMap::Receive& receive) {
          catalog_.load_pages(id_, first, count, valid, receive);
        });
    if (inherits()) inherit();
  }

  void deactivate() override {
    map_.reset();
    file_ = nullptr;
    owned_file_.reset();
  }

  bool inherits() override { return arena_.has_found(id_); }

  void disinherit() override {
    for (const MapArena::Found& found : arena_.take_found(id_)) arena_.release(found.slot);
  }

  // A present chunk was written whole, so the file ends behind the last. That one is not looked for
  // in a large map: if a file was cut off, the first pages behind its end tell mostly, or the last.
  std::optional<std::string> damage() override {
    if (!has_file_) return std::nullopt;
    const File& file = *file_.load();
    if (file.status().st_nlink > 1) {
      return path() + ": has another name too (a hard link), which would change with it";
    }
    const uint64_t size = file.size();
    uint64_t needed = 0;
    const auto look = [&](uint64_t page, const MapBits& bits) {
      const std::optional<uint64_t> last = last_present(bits);
      if (!last) return;
      needed = std::max(needed, chunk_.offset_of(page * kChunksPerPage + *last + 1));
    };
    try {
      constexpr uint64_t kPages = 1024;
      catalog_.load_pages(id_, chunk_.chunk_of(size) / kChunksPerPage, kPages, valid, look);
      if (const auto last = catalog_.last_page(id_)) {
        catalog_.load_pages(id_, *last, 1, valid, look);
      }
    } catch (const Error&) {
      // A map that cannot be read is an error where it is needed.
    }
    if (needed <= size) return std::nullopt;
    return path() + ": is " + std::to_string(size) + " bytes long, and has to have " +
           std::to_string(needed) + " at least";
  }

  Run find(uint64_t offset, uint64_t length) override {
    const uint64_t first = chunk_.chunk_of(offset);
    const uint64_t last = chunk_.chunk_of(offset + length - 1);
    const auto [state, count] = map_->run(first, last - first + 1);
    const uint64_t end = std::min(offset + length, chunk_.offset_of(first + count));
    if (state != ChunkState::present) return {state, end - offset, nullptr, 0};
    const File* file = file_;
    if (file == nullptr) {
      throw Error::with_message(EUCLEAN, path() + ": missing, but the catalog says it has data");
    }
    return {state, end - offset, file, offset};
  }

  Run place(uint64_t offset, uint64_t length) override {
    const File* file = file_;
    if (file == nullptr) {
      with_descriptors([&] { file = &make_file(); }, *close_idle_);
    }
    return {ChunkState::absent, length, file, offset};
  }

  // What the host gave before it ran out would be of no use to anybody.
  void give_up(uint64_t offset, const Run& place) override { reclaim(offset, place.length); }

  void set_present(uint64_t offset, const Run& place) override {
    note_write();
    map_->set(chunk_.chunk_of(offset), chunk_.chunk_of(place.length), ChunkState::present);
  }

  void take_away(uint64_t offset, uint64_t length, ChunkState state) override {
    const uint64_t first = chunk_.chunk_of(offset);
    const uint64_t count = chunk_.chunk_of(length);
    // What is in that state already costs no map page, but may have reserved space to give back.
    if (map_->run(first, count) != std::pair{state, count}) map_->set(first, count, state);
    const std::lock_guard lock(mutex_);
    if (file_ == nullptr) return;
    if (sabotaged(Sabotage::reuse_at_once)) file_.load()->punch(offset, length);
    // After the bits: a `prepare` that takes this range copies them too.
    freed_.add(offset, length);
  }

  void reserve(uint64_t offset, uint64_t length) override {
    // Asked for too much, a host file system takes all that there is before it fails.
    if (length > space_at(directory_).free + own_bytes()) throw Error(ENOSPC, "allocate " + path());
    place(offset, length).file->allocate(offset, length);
    note_write();
  }

  void note_write() override {
    // After the write, never before: a flush that clears the mark then syncs what is written.
    if (!data_dirty_.load()) data_dirty_.store(true);
  }

  bool dirty() override {
    if (map_->dirty() || has_unnamed_file()) return true;
    const std::lock_guard lock(mutex_);
    return !freed_.empty();
  }

  bool unsynced() override { return data_dirty_.load(); }

  std::unique_ptr<Changes> prepare(uint64_t size) override { return take_changes(size); }

  std::unique_ptr<Changes> prepare_cut(uint64_t size) override {
    auto changes = take_changes(kMaxImageSize);
    const uint64_t first_gone = chunk_.chunk_of(chunk_.up(size));
    const uint64_t boundary = first_gone / kChunksPerPage;
    std::erase_if(changes->pages, [&](const PageCopy& copy) { return copy.page >= boundary; });
    if (first_gone % kChunksPerPage != 0) {
      PageCopy kept = map_->copy(boundary);
      keep_below(kept, first_gone, ChunkMap::kBits);
      changes->pages.push_back(kept);
    }
    changes->remove_pages_from = (first_gone + kChunksPerPage - 1) / kChunksPerPage;
    const uint64_t cut = kMaxImageSize - chunk_.up(size);
    changes->freed.emplace_back(chunk_.up(size), cut);
    const std::lock_guard lock(mutex_);
    freeing_.add(chunk_.up(size), cut);
    return changes;
  }

  void sync_data() override {
    const File* file = file_;
    if (file == nullptr || !data_dirty_.exchange(false)) return;
    if (has_file_) {
      if (!sabotaged(Sabotage::no_data_sync)) file->sync_data();
      return;
    }
    file->sync();
    if (!sabotaged(Sabotage::no_directory_sync)) {
      entries_->sync();
    }
    file_is_durable_ = true;
  }

  void publish(Catalog::Change& change, const Changes& changes) override {
    // A file that was made after sync_data looked, or only to reserve space, is not named yet.
    if (!has_file_ && file_is_durable_) {
      change.set_has_file(id_);
      naming_file_ = true;
    }
    const SparseChanges& copies = sparse(changes);
    for (const PageCopy& copy : copies.pages) {
      const bool live = sabotaged(Sabotage::commit_live_page);
      change.put_page(id_, copy.page, live ? map_->copy(copy.page).bits : copy.bits);
    }
    if (copies.remove_pages_from) change.remove_pages_from(id_, *copies.remove_pages_from);
  }

  void committed() override {
    if (std::exchange(naming_file_, false)) has_file_ = true;
    map_->committed(std::exchange(taken_, {}));
    const std::lock_guard lock(mutex_);
    for (const auto& [offset, length] : freeing_.ranges()) freed_for_good_.add(offset, length);
    freeing_.clear();
  }

  void put_back(const Changes& changes) override {
    naming_file_ = false;
    const SparseChanges& copies = sparse(changes);
    map_->put_back(copies.taken);
    const std::lock_guard lock(mutex_);
    for (const auto& [offset, length] : copies.freed) freed_.add(offset, length);
    freeing_.clear();
  }

  void discard() override {
    naming_file_ = false;
    file_is_durable_ = false;
    data_dirty_ = false;
    {
      // What the catalog says is present is not to be punched.
      const std::lock_guard lock(mutex_);
      freed_.clear();
      freeing_.clear();
    }
    map_->discard();
    // What could not be written is in the host's cache still, and would be seen until it is gone.
    if (const File* file = file_; file != nullptr) file->drop_cached();
  }

  void cut(uint64_t size) override { map_->clear_from(chunk_.chunk_of(chunk_.up(size))); }

  void reclaim(uint64_t offset, uint64_t length) override {
    {
      // Also if it fails: it is a leak then.
      const std::lock_guard lock(mutex_);
      freed_for_good_.remove(offset, length);
    }
    const File* file = file_;
    if (file == nullptr) return;
    const uint64_t end = std::min(offset + length, chunk_.up(file->size()));
    while (offset < end) {
      const Run run = find(offset, end - offset);
      if (run.state == ChunkState::present) {
        offset += run.length;
        continue;
      }
      const auto [uncommitted, length_of_that] = uncommitted_run(offset, run.length);
      if (!uncommitted) file->punch(offset, length_of_that);
      offset += length_of_that;
    }
  }

  bool frees(const Changes& changes) const override { return !sparse(changes).freed.empty(); }

  void give_back(const Changes& changes, const HoldChunks& hold) override {
    std::optional<Error> failure;
    for (const auto& [offset, length] : sparse(changes).freed) {
      const RangeLock::Guard guard = hold(offset, length);
      try {
        reclaim(offset, length);
      } catch (const Error& error) {
        failure = error;
      }
    }
    if (failure) throw Error(*failure);
  }

  std::optional<Flaw> next_flaw(uint64_t offset, uint64_t length) override {
    const uint64_t end = offset + length;
    std::optional<Flaw> flaw;
    while (offset < end) {
      const auto [kind, run] = judge(offset, end - offset);
      if (flaw && flaw->kind != kind) break;
      if (kind && !flaw) flaw = Flaw{*kind, offset, 0};
      if (flaw) flaw->length += run;
      offset += run;
    }
    return flaw;
  }

  uint64_t space_end() const override {
    const File* file = file_;
    return file == nullptr ? 0 : file->size();
  }

  uint64_t own_bytes() const override {
    struct stat status {};
    if (::stat(path().c_str(), &status) != 0) return 0;
    return static_cast<uint64_t>(status.st_blocks) * 512;
  }

  std::optional<std::string> cow_path() const override { return path(); }

  void remove_files() override { remove_file(path(), hook_); }

 private:
  std::unique_ptr<SparseChanges> take_changes(uint64_t size) {
    auto changes = std::make_unique<SparseChanges>();
    {
      const std::lock_guard lock(mutex_);
      changes->freed = freed_.ranges();
      freeing_ = std::exchange(freed_, {});
    }
    changes->pages = map_->take_dirty(chunk_.chunk_of(chunk_.up(size)));
    for (const PageCopy& copy : changes->pages) changes->taken.push_back(copy.page);
    taken_ = changes->taken;
    changes->names_file = has_unnamed_file();
    return changes;
  }

  /// Goes on where an earlier process was killed.
  void inherit() {
    const std::vector<MapArena::Found> pages = arena_.take_found(id_);
    map_->adopt(pages);
    data_dirty_ = true;
    // What it had freed is to be given back after the next commit.
    for (const MapArena::Found& found : pages) {
      const uint64_t start = chunk_.offset_of(found.page * kChunksPerPage);
      const uint64_t end = start + chunk_.offset_of(kChunksPerPage);
      for (uint64_t at = start; at < end;) {
        const std::optional<Flaw> flaw = next_flaw(at, end - at);
        if (!flaw) break;
        at = flaw->offset + flaw->length;
        if (flaw->kind == Flaw::Kind::leaked) freed_.add(flaw->offset, flaw->length);
      }
    }
  }

  std::string path() const { return directory_ + "/" + std::to_string(id_) + ".cow"; }

  /// Made, by a write or a reservation, and to be named by the next commit.
  bool has_unnamed_file() const { return !has_file_ && file_ != nullptr; }

  /// What is wrong at `offset`, and for how many bytes on, at most `length` > 0, the answer is the
  /// same.
  std::pair<std::optional<Flaw::Kind>, uint64_t> judge(uint64_t offset, uint64_t length) {
    const uint64_t chunk = chunk_.chunk_of(offset);
    const auto [state, count] = map_->run(chunk, chunk_.chunk_of(offset + length - 1) - chunk + 1);
    const uint64_t run = std::min(length, chunk_.offset_of(chunk + count) - offset);
    const File* file = file_;
    const std::optional<uint64_t> data = file == nullptr ? std::nullopt : file->next_data(offset);
    const bool present = state == ChunkState::present;
    if (!data || *data > offset) {
      const uint64_t hole = std::min(run, data.value_or(UINT64_MAX) - offset);
      return {present ? std::optional(Flaw::Kind::lost) : std::nullopt, hole};
    }
    const uint64_t hole = file->next_hole(offset);
    // Punched since: nothing is wrong with a chunk that changes just now.
    if (hole <= offset) return {std::nullopt, std::min(run, chunk_.up(offset + 1) - offset)};
    const uint64_t filled = std::min(run, hole - offset);
    if (present) return {std::nullopt, filled};
    const auto [freed, freed_run] = freed_anywhere(offset, filled);
    return {freed ? std::nullopt : std::optional(Flaw::Kind::leaked), freed_run};
  }

  /// Whether a commit that is due or under way will give the byte at `offset` back, and for how
  /// many bytes on the answer is the same.
  std::pair<bool, uint64_t> freed_anywhere(uint64_t offset, uint64_t length) {
    const auto [uncommitted, run] = uncommitted_run(offset, length);
    const std::lock_guard lock(mutex_);
    const auto [committed, both] = freed_for_good_.run(offset, run);
    return {uncommitted || committed, both};
  }

  /// Whether the chunk at `offset` was freed by what is not committed yet, and how many bytes on
  /// the answer is the same.
  std::pair<bool, uint64_t> uncommitted_run(uint64_t offset, uint64_t length) {
    const std::lock_guard lock(mutex_);
    const auto [in_freed, first] = freed_.run(offset, length);
    const auto [in_freeing, both] = freeing_.run(offset, first);
    return {in_freed || in_freeing, both};
  }

  std::unique_ptr<File> open_file(int flags, mode_t mode) {
    auto file = std::make_unique<File>(path(), flags | O_NOFOLLOW, mode, hook_);
    if (is_among_last(file->fd())) throw Error(EMFILE, "open " + path());
    return file;
  }

  const File& make_file() {
    const std::lock_guard lock(mutex_);
    if (file_ == nullptr) {
      owned_file_ = open_file(O_RDWR | O_CREAT | O_TRUNC, 0600);
      file_ = owned_file_.get();
    }
    return *file_;
  }

  const ChunkSize chunk_;
  MapArena& arena_;
  Catalog& catalog_;
  const FaultHook* hook_;
  const File* const entries_;
  const std::function<bool()>* close_idle_;
  const uint64_t id_;
  const std::string directory_;
  const bool read_only_;

  // Of the committing thread:
  std::atomic<bool> has_file_;    // the catalog's row says so; changed by who commits
  bool naming_file_ = false;      // by the transaction that is under way
  bool file_is_durable_ = false;  // and its directory's entry; of a file that was made here
  std::vector<uint64_t> taken_;   // pages that were prepared last

  std::unique_ptr<ChunkMap> map_;
  std::atomic<const File*> file_ = nullptr;  // owned_file_, for use without the lock
  // Written to since the last sync, for all that is known: a server that was killed may have
  // written what nobody synced, and a flush is to make durable whatever was there to be read (I3).
  std::atomic<bool> data_dirty_;
  std::mutex mutex_;  // guards what follows
  std::unique_ptr<File> owned_file_;
  RangeSet freed_;           // since the last prepare
  RangeSet freeing_;         // by the prepare whose commit is under way
  RangeSet freed_for_good_;  // and not reclaimed yet
};

class SparsePolicy final : public StorePolicy {
 public:
  explicit SparsePolicy(const PolicyContext& context) : context_(context) {}

  std::unique_ptr<Layer> layer(const LayerRow& row) override {
    return std::make_unique<SparseLayer>(context_, row);
  }

 private:
  const PolicyContext& context_;
};

}  // namespace

std::unique_ptr<StorePolicy> open_sparse_policy(const PolicyContext& context) {
  return std::make_unique<SparsePolicy>(context);
}

}  // namespace cowfs
