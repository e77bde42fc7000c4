// Policy `sparse`
//
// The CoW file `layers/<id>.cow` mirrors the image: chunk c lies at c * chunk size, and only the
// map says whether its bytes mean something (I12). A present chunk was always written whole, so
// there is no hole under it. The map lies in the catalog's map_page.
//
// The file is made at the first write. It is synced, and its directory, before the first row that
// speaks of it (I3); a file without such a row is a left-over and is emptied when it is met again.
// The file's length is not kept in step with the image's size.

#include "store/policy_sparse.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>

#include "store/error.h"

namespace cowfs {
namespace {

using FreedRanges = std::vector<std::pair<uint64_t, uint64_t>>;

struct SparseChanges : Layer::Changes {
  std::vector<PageCopy> pages;
  FreedRanges freed;
  std::optional<uint64_t> remove_pages_from;

  [[nodiscard]] bool empty() const override { return pages.empty() && !remove_pages_from; }
};

const SparseChanges& sparse(const Layer::Changes& changes) {
  return static_cast<const SparseChanges&>(changes);
}

class SparseLayer final : public Layer {
 public:
  SparseLayer(const LayerContext& context, const LayerRow& row)
      : Layer(row.parent_limit),
        chunk_(context.chunk),
        arena_(context.arena),
        catalog_(context.catalog),
        hook_(context.hook),
        id_(row.id),
        directory_(context.directory),
        has_file_(row.has_file) {}

  void activate() override {
    if (has_file_) {
      owned_file_ = std::make_unique<File>(cow_path(), O_RDWR | O_NOFOLLOW, 0, hook_);
      file_ = owned_file_.get();
    }
    map_ = std::make_unique<ChunkMap>(
        arena_, id_, [this](uint64_t first, uint64_t count, const ChunkMap::Receive& receive) {
          catalog_.load_pages(id_, first, count, receive);
        });
  }

  void deactivate() override {
    map_.reset();
    file_ = nullptr;
    owned_file_.reset();
  }

  Run find(uint64_t offset, uint64_t length) override {
    const uint64_t first = chunk_.chunk_of(offset);
    const uint64_t last = chunk_.chunk_of(offset + length - 1);
    const auto [state, count] = map_->run(first, last - first + 1);
    const uint64_t end = std::min(offset + length, chunk_.offset_of(first + count));
    if (state != ChunkState::present) return {state, end - offset, nullptr, 0};
    const File* file = file_;
    if (file == nullptr) {
      throw Error::with_message(EUCLEAN,
                                cow_path() + ": missing, but the catalog says it has data");
    }
    return {state, end - offset, file, offset};
  }

  Run place(uint64_t offset, uint64_t length) override {
    const File* file = file_;
    if (file == nullptr) file = &make_file();
    return {ChunkState::absent, length, file, offset};
  }

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
    // After the bits: a `prepare` that takes this range copies them too.
    if (!freed_.empty() && freed_.back().first + freed_.back().second == offset) {
      freed_.back().second += length;
    } else {
      freed_.emplace_back(offset, length);
    }
  }

  void reserve(uint64_t offset, uint64_t length) override {
    place(offset, length).file->allocate(offset, length);
  }

  void note_write() override {
    // After the write, never before: a flush that clears the mark then syncs what is written.
    if (!data_dirty_.load()) data_dirty_.store(true);
  }

  bool dirty() override {
    if (map_->dirty()) return true;
    const std::lock_guard lock(mutex_);
    return !freed_.empty();
  }

  std::unique_ptr<Changes> prepare() override {
    auto changes = std::make_unique<SparseChanges>();
    {
      const std::lock_guard lock(mutex_);
      changes->freed.swap(freed_);
    }
    changes->pages = map_->take_dirty();
    return changes;
  }

  std::unique_ptr<Changes> prepare_cut(uint64_t size) override {
    auto changes = std::make_unique<SparseChanges>();
    {
      const std::lock_guard lock(mutex_);
      changes->freed.swap(freed_);
    }
    changes->pages = map_->take_dirty();
    const uint64_t first_gone = chunk_.chunk_of(chunk_.up(size));
    const uint64_t boundary = first_gone / kChunksPerPage;
    std::erase_if(changes->pages, [&](const PageCopy& copy) { return copy.page >= boundary; });
    if (first_gone % kChunksPerPage != 0) {
      PageCopy kept = map_->copy(boundary);
      for (uint64_t i = first_gone % kChunksPerPage; i < kChunksPerPage; ++i) {
        kept.bits[i / 32] &= ~(uint64_t{3} << (2 * (i % 32)));
      }
      changes->pages.push_back(kept);
    }
    changes->remove_pages_from = (first_gone + kChunksPerPage - 1) / kChunksPerPage;
    changes->freed.emplace_back(chunk_.up(size), kMaxImageSize - chunk_.up(size));
    return changes;
  }

  void sync_data() override {
    const File* file = file_;
    if (file == nullptr || !data_dirty_.exchange(false)) return;
    if (has_file_) {
      file->sync_data();
      return;
    }
    file->sync();
    File(directory_, O_RDONLY | O_DIRECTORY, 0, hook_).sync();
  }

  void publish(Catalog::Change& change, const Changes& changes) override {
    if (!has_file_ && file_ != nullptr) {
      change.set_has_file(id_);
      // If the transaction fails the layer is failed, and made anew from the catalog later.
      has_file_ = true;
    }
    const SparseChanges& copies = sparse(changes);
    for (const PageCopy& copy : copies.pages) change.put_page(id_, copy.page, copy.bits);
    if (copies.remove_pages_from) change.remove_pages_from(id_, *copies.remove_pages_from);
  }

  void cut(uint64_t size) override { map_->clear_from(chunk_.chunk_of(chunk_.up(size))); }

  void reclaim(uint64_t offset, uint64_t length) override {
    const File* file = file_;
    if (file == nullptr) return;
    const uint64_t end = std::min(offset + length, chunk_.up(file->size()));
    while (offset < end) {
      const Run run = find(offset, end - offset);
      if (run.state != ChunkState::present) file->punch(offset, run.length);
      offset += run.length;
    }
  }

  const FreedRanges& freed(const Changes& changes) const override { return sparse(changes).freed; }

  uint64_t own_bytes() const override {
    struct stat status {};
    if (::stat(cow_path().c_str(), &status) != 0) return 0;
    return static_cast<uint64_t>(status.st_blocks) * 512;
  }

  std::string cow_path() const override { return directory_ + "/" + std::to_string(id_) + ".cow"; }

  void remove_files() override { remove_file(cow_path(), hook_); }

 private:
  const File& make_file() {
    const std::lock_guard lock(mutex_);
    if (file_ == nullptr) {
      owned_file_ =
          std::make_unique<File>(cow_path(), O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600, hook_);
      file_ = owned_file_.get();
    }
    return *file_;
  }

  const ChunkSize chunk_;
  MapArena& arena_;
  Catalog& catalog_;
  const FaultHook* hook_;
  const uint64_t id_;
  const std::string directory_;

  bool has_file_;  // the catalog's row says so; of the committing thread
  std::unique_ptr<ChunkMap> map_;
  std::atomic<const File*> file_ = nullptr;  // owned_file_, for use without the lock
  std::atomic<bool> data_dirty_ = false;     // written to since the last sync
  std::mutex mutex_;                         // guards what follows
  std::unique_ptr<File> owned_file_;
  FreedRanges freed_;
};

}  // namespace

std::unique_ptr<Layer> make_sparse_layer(const LayerContext& context, const LayerRow& row) {
  return std::make_unique<SparseLayer>(context, row);
}

}  // namespace cowfs
