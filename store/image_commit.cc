// How changes of an image become durable
//
// A commit (I3, I4):
//   1. the parent limit, the size and the changed map pages are copied, in this order and not in
//      the middle of a sharing with the base, which changes all three
//   2. the CoW file is synced
//   3. the copies are committed to the catalog
//   4. space that the copies freed is given back
// The live map goes on changing all the while. Whatever the copies say present was written before
// they were made, so (2) makes it durable before (3) says so. A size is read before the map since a
// write sets its bits before it raises the size: a committed size never covers chunks whose bits
// the commit lacks.
//
// Where the catalog finds no space for (3), the reserve given up, the copies are dropped and the
// marks are set again: nothing is lost, and the flush fails with ENOSPC until there is space (I7).
//
// If (2) or (3) fails otherwise the copies are dropped and the image fails (I8): the host may have
// marked the unwritten pages clean, so that a second sync would lie. The live map goes back to what
// the catalog has, since what it said beyond that may have no data any more. That it failed is
// recorded in the catalog and outlives the server.
//
// Punching comes after the commit (I12). A chunk that was written again meanwhile is left alone.

#include <spdlog/logger.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "store/error.h"
#include "store/image.h"
#include "store/sabotage.h"
#include "store/stop_point.h"

namespace cowfs {
namespace {

ImageRow row_of(uint64_t id, const Attributes& attributes) {
  ImageRow row;
  row.id = id;
  row.mode = attributes.mode;
  row.uid = attributes.uid;
  row.gid = attributes.gid;
  row.atime_ns = attributes.atime_ns;
  row.mtime_ns = attributes.mtime_ns;
  row.ctime_ns = attributes.ctime_ns;
  return row;
}

/// The catalog has no space for a commit: nothing is lost, all goes with the next one.
struct NoRoom {
  Error error;
};

}  // namespace

// Runs `work` with the commit's lock held. `held` are chunks that the caller holds: they are let go
// if it fails, since all have to stand still for what is forgotten.
template <typename Work>
void Image::run_commit(std::optional<RangeLock::Guard>& held, const Work& work) {
  std::string failure;
  {
    const std::lock_guard lock(commit_mutex_);
    check_not_failed();
    try {
      work();
      return;
    } catch (const NoRoom& none) {
      throw Error(none.error);
    } catch (const std::exception& error) {
      mark_failed();  // before all that needs memory
      attempt([&] { failure = error.what(); });
    }
    attempt([&] { fail(failure); });
  }
  held.reset();
  discard_uncommitted();
  throw Error::with_message(EIO, failure);
}

// (3), with what else goes with it. Where there is no space for it, after the data was synced well,
// nothing has been lost and nothing is said that is not so: the changes wait for the next commit.
void Image::publish_or_put_back(const Layer::Changes& changes,
                                const std::function<void(Catalog::Change&)>& work) {
  try {
    context_.catalog.change([&](Catalog::Change& change) {
      layer_->publish(change, changes);
      work(change);
      stop_point(StopPoint::commit_begun);
    });
    stop_point(StopPoint::committed);
  } catch (const Error& error) {
    if (!is_no_space(error.code())) throw;
    layer_->put_back(changes);
    times_.lock()->dirty = true;
    throw NoRoom{Error::with_message(ENOSPC, title() + ": not committed yet: " + error.what())};
  }
}

// A layer may need space to say what changed: nothing is lost, and nothing said, where there is
// none.
template <typename Prepare>
std::unique_ptr<Layer::Changes> Image::with_room(const Prepare& prepare) {
  while (true) {
    try {
      return prepare();
    } catch (const Error& error) {
      if (!is_no_space(error.code())) throw;
      if (context_.reserve.give_up()) continue;
      throw NoRoom{Error::with_message(ENOSPC, title() + ": not committed yet: " + error.what())};
    }
  }
}

void Image::fail(const std::string& failure) {
  mark_failed();
  *failure_.lock() = failure;
  context_.log.error(
      "{}: {}: its changes since the last flush are lost, writes fail now; look at the disk, then "
      "end this with cowfs check --clear, or with cowfs umount --force and a new mount",
      title(), failure);
  try {
    context_.catalog.change(
        [&](Catalog::Change& change) { change.set_failure(layer_id_, failure); });
  } catch (const Error& error) {
    context_.log.error("{}: not recorded that it failed: {}", title(), error.what());
  }
}

void Image::discard_uncommitted() {
  try {
    forget_uncommitted();
    unreadable_ = false;
  } catch (const std::exception& error) {
    unreadable_ = true;
    attempt([&] {
      context_.log.error("{}: {}: reads fail too, until it can be read again", title(),
                         error.what());
    });
  }
}

void Image::forget_uncommitted() {
  // Who waits for a chunk finds out, once he has it, that the image has failed.
  const RangeLock::Guard all = chunks_.lock({0, ChunkMap::kMaxChunks});
  const std::lock_guard lock(commit_mutex_);
  // Before the first change and after the last: who has read meanwhile reads again.
  struct Moved {
    std::atomic<uint64_t>& count;
    explicit Moved(std::atomic<uint64_t>& counter) : count(counter) { count.fetch_add(1); }
    Moved(const Moved&) = delete;
    Moved& operator=(const Moved&) = delete;
    ~Moved() { count.fetch_add(1); }
  } const moved(reclaims_);
  layer_->set_parent_limit(committed_limit_);
  live_.size.store(committed_size_, std::memory_order_release);
  layer_->discard();
}

void Image::clear_failure(bool caller_uses) {
  if (usage_.lock()->count > (caller_uses ? 1 : 0)) {
    throw Error::with_message(EBUSY, title() + ": is in use");
  }
  if (unreadable_.load()) discard_uncommitted();
  const std::lock_guard lock(commit_mutex_);
  if (unreadable_.load()) throw Error(EIO, title());
  context_.catalog.change(
      [&](Catalog::Change& change) { change.set_failure(layer_id_, std::nullopt); });
  failure_.lock()->reset();
  live_.failed = 0;
  failed_ = false;
}

void Image::flush() {
  flushes_.run([this] { commit(false); });
}

void Image::flush_all() { commit(true); }

bool Image::dirty() {
  if (failed()) return false;
  return times_.lock()->dirty || (in_use_or_open() && (layer_->dirty() || reshaped()));
}

bool Image::reshaped() const {
  return size() != committed_size_ || layer_->parent_limit() != committed_limit_;
}

bool Image::needs_flush() {
  if (!in_use_or_open()) return false;
  const std::lock_guard lock(commit_mutex_);
  return layer_->dirty() || layer_->unsynced() || reshaped();
}

void Image::put_times(Catalog::Change& change) {
  auto times = times_.lock();
  change.set_image(row_of(id_, times->attributes));
  times->dirty = false;
}

void Image::commit(bool with_times) {
  std::unique_ptr<Layer::Changes> changes;
  std::optional<RangeLock::Guard> none;
  run_commit(none, [&] {
    uint64_t limit = 0;
    uint64_t size = 0;
    {
      const std::lock_guard shape_lock(shape_mutex_);
      limit = layer_->parent_limit();
      size = this->size();
      changes = with_room([&] { return layer_->prepare(size); });
    }
    const bool sync_late = sabotaged(Sabotage::commit_before_sync);
    if (!sync_late) layer_->sync_data();
    if (sabotaged(Sabotage::punch_before_commit)) {
      layer_->committed();
      give_back(*changes);
    }
    const bool due = !changes->empty() || size != committed_size_ || limit != committed_limit_;
    bool times_due = false;
    Attributes attributes;
    if (due || with_times) {
      auto times = times_.lock();
      times_due = times->dirty;
      times->dirty = false;
      attributes = times->attributes;
    }
    if (due || times_due) {
      publish_or_put_back(*changes, [&](Catalog::Change& change) {
        if (size != committed_size_) change.set_size(id_, size);
        if (limit != committed_limit_) change.set_parent_limit(layer_id_, limit);
        if (times_due) change.set_image(row_of(id_, attributes));
      });
      committed_size_ = size;
      committed_limit_ = limit;
    }
    if (sync_late) layer_->sync_data();
    layer_->committed();
  });
  give_back(*changes);
}

void Image::give_back(const Layer::Changes& changes) {
  if (!layer_->frees(changes)) return;
  // Before the first is given back, and long after the chunks' bits were changed: a reader that
  // looks them up from here on does not find them present, and who had, reads again.
  reclaims_.fetch_add(1);
  in_place_.wait();
  try {
    layer_->give_back(changes, [this](uint64_t offset, uint64_t length) {
      return chunks_.lock(
          {context_.chunk.chunk_of(offset), context_.chunk.chunk_of(offset + length)});
    });
  } catch (const Error& error) {
    // Nothing is wrong but that space is not given back.
    context_.log.warn("{}: space not given back: {}", title(), error.what());
  }
}

void Image::resize(uint64_t size) {
  if (size > largest_size()) throw Error(EFBIG, title());
  check_writable();
  if (size > this->size()) {
    extend(size);
    flush();
    return;
  }
  if (size == this->size()) {
    flush();
    return;
  }

  const ChunkSize chunk = context_.chunk;
  std::unique_ptr<Layer::Changes> changes;
  {
    // Nobody makes a chunk present behind the new end while it is cut off.
    std::optional<RangeLock::Guard> guard(
        chunks_.lock({chunk.chunk_of(size), chunk.chunk_of(kMaxImageSize) + 1}));
    run_commit(guard, [&] {
      const uint64_t limit = std::min(layer_->parent_limit(), size);
      changes = with_room([&] { return layer_->prepare_cut(size); });
      layer_->sync_data();
      // Whoever comes after a kill between the commit and what follows has to know.
      struct Cutting {
        LiveImage& live;
        ~Cutting() { live.cutting = 0; }
      } const cutting{live_};
      live_.cutting = size + 1;
      publish_or_put_back(*changes, [&](Catalog::Change& change) {
        change.set_size(id_, size);
        change.set_parent_limit(layer_id_, limit);
      });
      layer_->committed();
      committed_size_ = size;
      committed_limit_ = limit;
      // The other way round a reader could see the parent between the two.
      live_.size.store(size, std::memory_order_release);
      layer_->set_parent_limit(limit);
      layer_->cut(size);
      // After the commit (I12): before it, a crash would leave zeros in an image of the old size.
      tail_is_zero_ = false;
      try {
        if (!chunk.aligned(size)) {
          const Run run = layer_->find(size, chunk.up(size) - size);
          if (run.state == ChunkState::present) {
            const std::vector<std::byte> zeros(static_cast<size_t>(run.length));
            run.file->write(zeros, run.file_offset);
            layer_->note_write();
          }
          tail_is_zero_ = !tail_shows_parent(run.state, size);
        } else {
          tail_is_zero_ = true;
        }
      } catch (const std::exception& error) {
        // The next growth tries again, and fails if it cannot.
        context_.log.warn("{}: tail not zeroed: {}", title(), error.what());
      }
    });
  }
  give_back(*changes);
}

void Image::set_owner_and_mode(uint32_t uid, uint32_t gid, uint32_t mode, int64_t ctime_ns) {
  const std::lock_guard lock(commit_mutex_);
  Attributes attributes = this->attributes();
  attributes.uid = uid;
  attributes.gid = gid;
  attributes.mode = mode & 0777U;
  attributes.ctime_ns = ctime_ns;
  context_.catalog.change(
      [&](Catalog::Change& change) { change.set_image(row_of(id_, attributes)); });
  auto times = times_.lock();
  times->attributes.uid = attributes.uid;
  times->attributes.gid = attributes.gid;
  times->attributes.mode = attributes.mode;
  times->attributes.ctime_ns = attributes.ctime_ns;
  remember_times(times->attributes);
}

void Image::set_times(std::optional<int64_t> atime_ns, std::optional<int64_t> mtime_ns,
                      std::optional<int64_t> ctime_ns) {
  auto times = times_.lock();
  Attributes& attributes = times->attributes;
  if (atime_ns) attributes.atime_ns = *atime_ns;
  if (mtime_ns) attributes.mtime_ns = *mtime_ns;
  if (ctime_ns) attributes.ctime_ns = *ctime_ns;
  remember_times(attributes);
  times->dirty = true;
}

}  // namespace cowfs
