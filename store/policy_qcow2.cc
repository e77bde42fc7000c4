// Policy `qcow2`
//
// Each layer is a qcow2 file that names the base as its backing file, so that QEMU can have it
// whenever cowfs does not: its tables are the only chunk map, and its size is the image's. What is
// in memory is as for all layers whose chunks lie in slots (slot_layer.cc): the slots are the
// file's clusters.
//
// What the file says is to be the same for QEMU, which knows no parent limit: an absent cluster
// shows the base. So chunks behind the limit that would show some of it are made zero, before a
// commit says that the image goes so far, and the chunk that the limit is in the middle of gets its
// bytes when the image grows (Layer::shows_whole_chunks). The limit follows from the file then: the
// smaller of the two sizes.
//
// While the store is mounted the kernel may have some of an image in its cache, also of one that
// nobody uses: a file that another program changes then is not used again before the next mount.
//
// The size goes into the file first, in the middle of the catalog's transaction, and counts: where
// a crash, or QEMU, leaves the two different, the catalog is corrected.

#include "store/policy_qcow2.h"

#include <algorithm>
#include <cerrno>
#include <mutex>

#include "store/descriptor.h"
#include "store/error.h"
#include "store/names.h"
#include "store/sabotage.h"
#include "store/slot_layer.h"

namespace cowfs {
namespace {

/// First of Qcow2Layer's bases, which needs it to the end.
struct HasQcow2File {
  Qcow2File file;
};

class Qcow2Layer final : HasQcow2File, public SlotLayer {
 public:
  Qcow2Layer(const PolicyContext& context, const LayerRow& row)
      : HasQcow2File{Qcow2File(qcow2_identity(context, row.id), context.hook)},
        SlotLayer(context.chunk, context.arena, HasQcow2File::file, row),
        hook_(context.hook),
        is_made_(row.has_file),
        base_size_(context.base == nullptr ? 0 : context.base->virtual_size) {
    file.note_state();
  }

  void activate() override {
    // What is written to it would be gone with the next mount, which makes it anew.
    if (!is_made_) {
      throw Error::with_message(
          EUCLEAN, "layer " + file.path() + ": was not made to its end; mount the store again");
    }
    file.open();
    try {
      if (is_among_last(file.fd())) throw Error(EMFILE, "open " + file.path());
      hidden_to_ = 0;
      // A server that was killed may have written what nobody synced (I3).
      note_write();
      SlotLayer::activate();
    } catch (...) {
      file.abandon();
      throw;
    }
  }

  void deactivate() override {
    SlotLayer::deactivate();
    file.close();
  }

  void take_away(uint64_t offset, uint64_t length, ChunkState state) override {
    const uint64_t end = offset + length;
    // A commit must not find a chunk absent behind the limit.
    const std::lock_guard lock(hide_mutex_);
    if (state == ChunkState::absent) {
      const uint64_t first = std::clamp(chunk().up(parent_limit()), offset, end);
      const uint64_t last = std::clamp(hidden_to_, first, end);
      take(offset, first, ChunkState::absent);
      take(first, last, ChunkState::zero);
      take(last, end, ChunkState::absent);
    } else {
      take(offset, end, state);
    }
  }

  std::unique_ptr<Changes> prepare(uint64_t size) override {
    std::unique_ptr<Changes> changes;
    {
      const std::lock_guard lock(hide_mutex_);
      hide(size);
      changes = SlotLayer::prepare(size);
    }
    return with_tables(std::move(changes), size);
  }

  std::unique_ptr<Changes> prepare_cut(uint64_t size) override {
    std::unique_ptr<Changes> changes;
    {
      const std::lock_guard lock(hide_mutex_);
      hide(size);
      changes = SlotLayer::prepare_cut(size);
    }
    // What is to be cut off is so by the size, and not before.
    auto& pages = static_cast<SlotChanges&>(*changes).pages;
    const uint64_t first_gone = chunk().chunk_of(chunk().up(size));
    if (!pages.empty() && pages.back().page == first_gone / SlotMap::kChunksInPage) {
      pages.back() = map().copy(pages.back().page);
    }
    changes = with_tables(std::move(changes), size);
    size_before_ = file.size();
    return changes;
  }

  void sync_data() override {
    if (sabotaged(Sabotage::commit_before_sync)) write_pages();
    SlotLayer::sync_data();
    write_pages();
  }

  void publish(Catalog::Change& /*change*/, const Changes& /*changes*/) override {
    if (prepared_size_ != file.size()) file.write_size(prepared_size_);
  }

  void committed() override {
    size_before_.reset();
    SlotLayer::committed();
  }

  void put_back(const Changes& changes) override {
    SlotLayer::put_back(changes);
    // What was to be cut off is there still.
    if (const auto size = std::exchange(size_before_, std::nullopt)) file.write_size(*size);
  }

  void discard() override {
    size_before_.reset();
    {
      const std::lock_guard lock(hide_mutex_);
      hidden_to_ = 0;
    }
    // The map is in the file: what could not be written is not to be read from the host's cache.
    file.drop_cached();
    file.reload();
    SlotLayer::discard();
  }

  void cut(uint64_t size) override {
    SlotLayer::cut(size);
    const uint64_t end = chunk().up(size);
    {
      const std::lock_guard lock(hide_mutex_);
      hidden_to_ = std::min(hidden_to_, end);
    }
    // Before its clusters are given back: until then a crash may find them named.
    file.clear_from(chunk().chunk_of(end));
  }

  uint64_t space_end() const override { return 1; }  // there is a file
  uint64_t own_bytes() const override { return file.own_bytes(); }
  std::optional<std::string> cow_path() const override { return file.path(); }
  void remove_files() override {
    file.abandon();
    remove_file(file.path(), hook_);
  }

  uint64_t largest_size() const override { return Qcow2File::largest_size(chunk()); }
  bool is_used_elsewhere() const override { return file.is_used_elsewhere(); }
  bool shows_whole_chunks() const override { return true; }

 protected:
  void load_pages(uint64_t first, uint64_t count, const Valid& valid,
                  const SlotMap::Receive& receive) override {
    file.load_pages(first, count, valid, receive);
  }
  std::optional<uint64_t> last_page() override { return file.last_page(); }

 private:
  void take(uint64_t from, uint64_t to, ChunkState state) {
    if (from < to) SlotLayer::take_away(from, to - from, state);
  }

  /// Makes zero what would show the base behind the limit in an image of this size.
  void hide(uint64_t size) {
    const uint64_t from = std::max(chunk().up(parent_limit()), hidden_to_);
    const uint64_t to = chunk().up(std::min(size, base_size_));
    if (from >= to) return;
    map().hide(chunk().chunk_of(from), chunk().chunk_of(to - from));
    raise_end(to);
    hidden_to_ = to;
  }

  std::unique_ptr<Changes> with_tables(std::unique_ptr<Changes> changes, uint64_t size) {
    auto& copies = static_cast<SlotChanges&>(*changes);
    copies.for_catalog = false;
    try {
      file.make_tables(copies.pages, size);
    } catch (...) {
      SlotLayer::put_back(*changes);
      throw;
    }
    if (!copies.pages.empty() || file.has_new_tables()) note_write();
    prepared_ = &copies;
    prepared_size_ = size;
    return changes;
  }

  void write_pages() {
    if (!sabotaged(Sabotage::commit_live_page)) {
      file.write_pages(prepared_->pages);
      return;
    }
    std::vector<PageCopy> pages;
    for (const PageCopy& page : prepared_->pages) pages.push_back(map().copy(page.page));
    file.write_pages(pages);
  }

  const FaultHook* const hook_;
  const bool is_made_;
  const uint64_t base_size_;
  // Of the committing thread:
  const SlotChanges* prepared_ = nullptr;
  uint64_t prepared_size_ = 0;
  std::optional<uint64_t> size_before_;  // a cut that is under way

  std::mutex hide_mutex_;   // guards what follows
  uint64_t hidden_to_ = 0;  // nothing behind the limit shows, up to there
};

class Qcow2Policy final : public StorePolicy {
 public:
  explicit Qcow2Policy(const PolicyContext& context) : context_(context) {}

  std::unique_ptr<Layer> layer(const LayerRow& row) override {
    return std::make_unique<Qcow2Layer>(context_, row);
  }

  uint64_t largest_size() const override { return Qcow2File::largest_size(context_.chunk); }

  std::vector<std::string> inspect(const LayerRow& row) override {
    return Qcow2File(qcow2_identity(context_, row.id), context_.hook).check();
  }

  bool adopt(ImageRow& image, LayerRow& layer) override {
    if (context_.base == nullptr) return false;
    const Qcow2File file(qcow2_identity(context_, layer.id), context_.hook);
    if (!layer.has_file) {
      with_descriptors([&] { file.make(image.size); }, context_.close_idle);
      context_.entries->sync();
      layer.has_file = true;
      layer.failure.reset();  // of a making before this one
      return true;
    }
    uint64_t size = 0;
    with_descriptors([&] { size = file.peek_size(image.size); }, context_.close_idle);
    // What the file does not hide shows.
    layer.parent_limit = std::min(size, context_.base->virtual_size);
    return std::exchange(image.size, size) != size;
  }

 private:
  const PolicyContext& context_;
};

}  // namespace

Qcow2File::Identity qcow2_identity(const PolicyContext& context, uint64_t layer) {
  return {.path = context.directory + "/" + std::to_string(layer) + ".qcow2",
          .store = context.store,
          .layer = layer,
          .chunk = context.chunk,
          .backing_name = context.base == nullptr ? "" : context.base->path,
          .backing_format = context.base == nullptr ? BaseFormat::raw : context.base->format};
}

void require_base_of_qcow2(const BaseRow& base) {
  constexpr size_t kMostName = 1023;
  const auto refuse = [&](const std::string& why) {
    throw Error::with_message(EINVAL, "base " + printable(base.path) + ": " + why +
                                          ", and with policy qcow2 each layer names it; move "
                                          "or convert it, or use another policy");
  };
  if (base.snapshot) refuse("a snapshot within a file has no name that a qcow2 file could give");
  if (base.path.size() > kMostName) refuse("its path has more than 1023 bytes");
}

std::unique_ptr<StorePolicy> open_qcow2_policy(const PolicyContext& context) {
  return std::make_unique<Qcow2Policy>(context);
}

}  // namespace cowfs
