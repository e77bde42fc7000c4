#pragma once

#include <spdlog/fwd.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "store/base.h"
#include "store/catalog.h"
#include "store/chunk_size.h"
#include "store/error.h"
#include "store/grace.h"
#include "store/group_commit.h"
#include "store/layer.h"
#include "store/live_images.h"
#include "store/range_lock.h"
#include "store/reserve.h"
#include "store/space_limit.h"
#include "store/synchronized.h"

namespace cowfs {

/// Owner, mode and times (ns since the epoch) of an image.
struct Attributes {
  uint32_t mode = 0;  ///< permission bits
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t atime_ns = 0;
  int64_t mtime_ns = 0;
  int64_t ctime_ns = 0;
  int64_t btime_ns = 0;
};

/// What messages call an image: by its name, or else by its number.
std::string image_title(uint64_t id, const std::optional<std::string>& name);

/// An image: the writable view of its active layer over the base. Offsets, lengths and sizes are
/// bytes. Thread-safe. Errors are thrown as Error; after a failed sync or commit everything that
/// writes or flushes throws EIO, and reads go on (I8). Where data is found to be missing, writes
/// throw EIO, and reads of that data.
///
/// An image is in use while somebody holds a Use of it; I/O is allowed only then. What is not in
/// use takes a few hundred bytes and no descriptor.
///
/// Lock order: chunks_ before commit_mutex_ before shape_mutex_ before the catalog. No lock is held
/// while waiting for the base or the CoW file but the range of chunks whose state changes (and the
/// commit's own).
class Image : public std::enable_shared_from_this<Image> {
 public:
  struct Context {
    const Base* base;  ///< null: no image can be used
    ChunkSize chunk;
    Catalog& catalog;
    Reserve& reserve;
    std::shared_ptr<LiveImages> live;  ///< shared, since an image may outlive its store
    spdlog::logger& log;
    /// What an image is called now; none if it was unlinked. Called with locks of the image held.
    std::function<std::optional<std::string>(uint64_t id)> name_of;
    /// Called when the last use of an unlinked image ends.
    std::function<void(Image&)> free_unlinked;
    /// Closes the files of images that nobody uses; whether there were any.
    std::function<bool()> close_idle;
  };

  /// `row` and `layer` are as the catalog has them; what a process before this one left in
  /// LiveMemory goes before that. `failure`: why the layer takes no writes (I8), if it takes none.
  Image(const Context& context, const ImageRow& row, std::unique_ptr<Layer> layer,
        const std::optional<std::string>& failure = std::nullopt);
  ~Image();

  /// Goes on where a process before this one was killed, before anything else is called: opens the
  /// image if there is something that the catalog may not have, so that it is committed. What makes
  /// no sense is logged, and the image fails (I8).
  void inherit();

  /// Keeps an image in use.
  class Use {
   public:
    Use() = default;
    Use(Use&&) noexcept = default;
    Use& operator=(Use&&) = delete;
    ~Use() {
      if (image_) image_->release();
    }
    Image* operator->() const { return image_.get(); }
    Image& operator*() const { return *image_; }
    explicit operator bool() const { return image_ != nullptr; }

   private:
    friend class Image;
    explicit Use(std::shared_ptr<Image> image) : image_(std::move(image)) {}
    std::shared_ptr<Image> image_;
  };
  /// Opens what the image needs. ENOENT if it was unlinked and freed, or there is no base.
  [[nodiscard]] Use use();
  /// The same as a pair of calls, for who keeps the count elsewhere. Each acquire needs a release.
  void acquire();
  void release();

  [[nodiscard]] uint64_t id() const { return id_; }
  [[nodiscard]] uint64_t layer_id() const { return layer_id_; }
  /// For messages: "image dom1.img", or, of an unlinked one, "image 5".
  [[nodiscard]] std::string title() const { return image_title(id_, context_.name_of(id_)); }
  [[nodiscard]] uint64_t size() const { return live_.size.load(std::memory_order_acquire); }
  [[nodiscard]] uint64_t own_bytes() const { return layer_->own_bytes(); }
  /// The CoW file that is its own, if the policy makes one; it may not exist yet.
  [[nodiscard]] std::optional<std::string> cow_path() const { return layer_->cow_path(); }
  /// Whether a program other than cowfs has its CoW file open for writing.
  [[nodiscard]] bool is_used_elsewhere() const { return layer_->is_used_elsewhere(); }
  /// In use: whether something was written to its CoW file, or room made in it.
  [[nodiscard]] bool has_file() const { return layer_->space_end() > 0; }
  /// Whether some of the base may show through.
  [[nodiscard]] bool shows_base() const { return layer_->parent_limit() > 0; }
  [[nodiscard]] Attributes attributes();

  // ---- data ------------------------------------------------------------------------------------

  /// Fills the front of `buffer`; returns how much, less than its size only at the image's end.
  size_t read(std::span<std::byte> buffer, uint64_t offset);

  /// Writes all of it, growing the image if need be, and waits where a chunk's state is changing.
  /// EFBIG if some of it lies beyond the largest size; what lies below is written then.
  void write(std::span<const std::byte> buffer, uint64_t offset);
  /// As write, but does not wait: if others hold a chunk that is to change its state, returns what
  /// to wait for, and how much of the front is written. The rest is to be repeated then.
  struct Blocked {
    ChunkRange range;
    size_t written;
  };
  [[nodiscard]] std::optional<Blocked> try_write(std::span<const std::byte> buffer,
                                                 uint64_t offset);
  /// Calls `action` when nobody changes the state of those chunks; see RangeLock::when_free.
  void when_free(ChunkRange range, std::function<void()> action) {
    chunks_.when_free(range, std::move(action));
  }

  /// The range reads as zeros and whole chunks of it take no space (after the next commit). Does
  /// not change the size.
  void make_zero(uint64_t offset, uint64_t length);
  /// Reserves space for later writes; does not change content or size.
  void reserve(uint64_t offset, uint64_t length);
  /// Grows to at least `size`; not durable before the next flush.
  void extend(uint64_t size);

  /// Copies as copy_file_range(2) does. Chunks that the source shares with the base become shared
  /// in this image where the place is the same, and host reflinks are used where there are some.
  /// Returns the bytes copied: less at the source's end, or to end on a chunk boundary.
  uint64_t copy_from(Image& source, uint64_t source_offset, uint64_t offset, uint64_t length);

  /// The first byte at or after `offset` that is data, or hole, as lseek(2) has it. Chunks that
  /// fall through to a hole of the base are holes. None at or behind the end; for data also where
  /// there is none left.
  [[nodiscard]] std::optional<uint64_t> next_data(uint64_t offset);
  [[nodiscard]] std::optional<uint64_t> next_hole(uint64_t offset);

  // ---- durability ------------------------------------------------------------------------------

  /// What was written before is durable when it returns (I3). Concurrent calls share one commit.
  /// ENOSPC if the catalog has no room for it: nothing is lost, and it can be tried again.
  void flush();
  /// As flush, and writes the times too.
  void flush_all();
  /// Whether a background commit is due (I11). Call it in use, or where in_use_or_open is false.
  [[nodiscard]] bool dirty();

  /// Whether there is more to commit than times.
  [[nodiscard]] bool needs_flush();
  /// Puts the times into a change that the caller commits, at the end, when nobody uses the image.
  void put_times(Catalog::Change& change);

  /// Bounds the space that it may take of its own: what needs more fails with ENOSPC, as on a full
  /// disk. None: no bound. Durable when it returns. It takes away nothing that is there.
  void set_space_limit(std::optional<uint64_t> bytes);
  [[nodiscard]] std::optional<uint64_t> space_limit() const { return space_limit_.get(); }

  /// Sets the size; atomic and durable when it returns. What a shrink took away never comes back.
  /// No write or zeroing behind the smaller size may be under way.
  void resize(uint64_t size);

  /// Mode and owner; durable when it returns.
  void set_owner_and_mode(uint32_t uid, uint32_t gid, uint32_t mode, int64_t ctime_ns);
  /// Kept in memory, and committed with what comes next or by flush_all.
  void set_times(std::optional<int64_t> atime_ns, std::optional<int64_t> mtime_ns,
                 std::optional<int64_t> ctime_ns);

  // ---- check -----------------------------------------------------------------------------------

  /// Looks through the CoW space while everything goes on: calls `receive` with what is wrong with
  /// it at any time, and with whether it was repaired (leaks only, if `repair`). `advance` is told
  /// the bytes looked through since its last call and may throw.
  void check(bool repair, const std::function<void(const Flaw&, bool repaired)>& receive,
             const std::function<void(uint64_t)>& advance);

  /// The state of I8: a sync or commit failed. What the catalog lacks is forgotten then, and writes
  /// and flushes throw EIO; it is recorded in the catalog, and ends by clear_failure.
  [[nodiscard]] bool failed() const { return failed_.load(); }
  /// Why; none if it did not.
  [[nodiscard]] std::optional<std::string> failure() { return *failure_.lock(); }
  /// Why its layer could not be taken into use when that was tried last; none if it could be.
  [[nodiscard]] std::optional<std::string> refusal() { return *refusal_.lock(); }
  void note_refusal(const std::string& why) { *refusal_.lock() = why; }
  /// Ends the failure; durable when it returns. EBUSY if others than the caller (if `caller_uses`)
  /// use the image: what they have cached may be lost.
  void clear_failure(bool caller_uses);

  /// Marks it as unlinked: the last release frees it. True if nobody has it in use now: then it is
  /// the caller's to free, and cannot be acquired any more.
  [[nodiscard]] bool unlink();
  [[nodiscard]] bool unlinked() { return usage_.lock()->unlinked; }
  /// Takes the mark back, after a failure to record it.
  void cancel_unlink();
  /// Whether a background commit is worth a look: it has been in use since it was last closed.
  [[nodiscard]] bool in_use_or_open() { return usage_.lock()->active; }
  /// Syncs and closes what is open if nobody uses the image; whether it did.
  bool retire_if_idle();
  /// Closes it if nobody uses it and all is durable; whether it did.
  bool try_retire();
  void remove_files() { layer_->remove_files(); }

 private:
  struct Usage {
    uint64_t count = 0;
    bool active = false;
    bool unlinked = false;
  };

  void check_not_failed() const;
  void check_writable() const;
  void mark_failed() {
    live_.failed = 1;
    failed_ = true;
  }
  void fail(const std::string& failure);

  // image_inherit.cc
  /// What an earlier process left of the image, or a new record that says what the catalog does.
  static LiveImage& live_record(LiveImages& images, const ImageRow& row, uint64_t limit);

  // image.cc
  void activate(Usage& usage);
  void activate_and_count();
  void remember_times(const Attributes& attributes);
  void read_run(const Run& run, std::span<std::byte> buffer, uint64_t offset) const;
  void read_interleaved(std::span<std::byte> buffer, uint64_t offset);
  void read_parent(std::span<std::byte> buffer, uint64_t offset) const;
  void read_below_size(std::span<std::byte> buffer, uint64_t offset);
  uint64_t write_in_place(std::span<const std::byte> buffer, uint64_t offset);
  /// Writes into chunks that are not present; the caller holds them.
  void write_new(std::span<const std::byte> buffer, uint64_t offset);
  void raise_size(uint64_t size);
  [[nodiscard]] SpaceLimit::Claim claim_space(uint64_t bytes);
  void give_up(uint64_t offset, const Run& place);
  /// What an absent or zero chunk reads as, for filling up a new one.
  void read_old(ChunkState state, std::span<std::byte> buffer, uint64_t offset) const;
  void zero_part(uint64_t offset, uint64_t length);
  void zero_chunks(uint64_t offset, uint64_t length);
  void zero_tail(uint64_t size);
  /// Whether a growth of an image that ends at `size`, in a chunk of this state, would bring some
  /// of the parent to light.
  [[nodiscard]] bool tail_shows_parent(ChunkState state, uint64_t size) const;
  /// In bytes.
  [[nodiscard]] uint64_t largest_size() const { return layer_->largest_size(); }

  // image_copy.cc
  uint64_t copy_piece(Image& source, uint64_t source_offset, uint64_t offset, uint64_t length);
  uint64_t copy_data(Image& source, uint64_t source_offset, uint64_t offset, uint64_t length);
  bool clone_present(const Run& run, uint64_t offset, const std::function<bool()>& intact);

  // image_share.cc
  /// What became of `length` bytes that were to be shared with the base: done, or they are to be
  /// written, or others hold chunks that are to be waited for first.
  struct Shared {
    bool done;
    uint64_t length;
    std::optional<ChunkRange> busy;
  };
  Shared share_with_base(uint64_t source_limit, uint64_t offset, uint64_t length);
  bool same_as_base(std::span<const std::byte> data, uint64_t offset);
  Shared share_written(const Run& run, uint64_t limit, std::span<const std::byte> data,
                       uint64_t offset);

  // image_commit.cc
  /// Whether the size or the parent limit is not as committed. No part of the map tells.
  [[nodiscard]] bool reshaped() const;
  void commit(bool with_times);
  void publish_or_put_back(const Layer::Changes& changes,
                           const std::function<void(Catalog::Change&)>& work);
  template <typename Prepare>
  std::unique_ptr<Layer::Changes> with_room(const Prepare& prepare);
  template <typename Work>
  void run_commit(std::optional<RangeLock::Guard>& held, const Work& work);
  void discard_uncommitted();
  void forget_uncommitted();
  void give_back(const Layer::Changes& changes);

  const Context context_;
  const uint64_t id_;
  const uint64_t layer_id_;
  LiveImage& live_;  // outlives the layer, which keeps its parent limit there
  const std::unique_ptr<Layer> layer_;

  Synchronized<Usage> usage_;
  std::atomic<bool> tail_is_zero_ = false;  // of the last chunk, behind the size
  std::atomic<bool> failed_;
  std::atomic<bool> unreadable_ = false;  // what the map says is not to be believed
  Synchronized<std::optional<std::string>> failure_;
  Synchronized<std::optional<std::string>> refusal_;
  std::atomic<bool> damaged_ = false;  // see Layer::damage; found out when it comes into use

  struct Times {
    Attributes attributes;
    bool dirty = false;
  };
  Synchronized<Times> times_;

  RangeLock chunks_;
  std::mutex shape_mutex_;  // what a commit copies does not change in the middle of a sharing
  std::atomic<uint64_t> reclaims_ = 0;  // see read
  Grace in_place_;                      // who writes to, or copies from, places that were looked up
  SpaceLimit space_limit_;
  static constexpr int64_t kShareCredit = 16 << 20;
  std::atomic<int64_t> share_credit_ = kShareCredit;  // bytes of the base to fetch for comparing
  GroupCommit flushes_;
  std::mutex commit_mutex_;  // one commit at a time; only its holder changes what follows
  std::atomic<uint64_t> committed_size_;
  std::atomic<uint64_t> committed_limit_;
};

}  // namespace cowfs
