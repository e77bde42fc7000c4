#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "store/catalog.h"
#include "store/chunk_map.h"
#include "store/chunk_size.h"
#include "store/file.h"
#include "store/range_lock.h"

namespace cowfs {

/// A run of neighbouring bytes of a layer with one answer. Offsets and lengths in bytes.
struct Run {
  ChunkState state;
  uint64_t length;
  const File* file;      ///< where a present run lies, else null
  uint64_t file_offset;  ///< its place there
  uint64_t number = 0;   ///< the layer's own, of that place
};

/// A run of bytes of a layer whose map and CoW space do not agree.
struct Flaw {
  enum class Kind {
    lost,    ///< the map says present, and there is no data: a hole, or the space's end
    leaked,  ///< space is taken by what the map does not say present
  };
  Kind kind;
  uint64_t offset;
  uint64_t length;
};

/// Takes the lock of the chunks that hold bytes [offset, offset + length) of a layer.
using HoldChunks = std::function<RangeLock::Guard(uint64_t offset, uint64_t length)>;

/// A delta over a parent: where each chunk is, and how a change of that becomes durable. This is
/// the seam under which allocation policies differ; above it nothing knows of them. A policy
/// decides places; locking of chunks, copy-up and data I/O are the caller's (see image.h).
///
/// A commit is three calls, in this order and never two at a time (I3, I4):
///   prepare       copies what has changed
///   sync_data     makes the data durable that the copies speak of
///   publish       puts the copies into a transaction
/// and, once that transaction is durable, or there was nothing to publish, `committed`; then, when
/// nobody reads or writes any more who looked up a place before, `give_back` has the space used
/// again that the copies freed (I5, I12). Thread-safe but for that, and for
/// `activate`/`deactivate`, during which nothing else is called.
class Layer {
 public:
  /// What `prepare` copied. Dropping it unpublished loses it: `put_back` or `discard` is due
  /// then.
  class Changes {
   public:
    virtual ~Changes() = default;
    /// Whether there is something to publish.
    [[nodiscard]] virtual bool empty() const = 0;
  };

  explicit Layer(uint64_t parent_limit) : own_parent_limit_(parent_limit) {}
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  virtual ~Layer() = default;

  /// Opens what the layer needs for use, or closes it again; what was not committed is lost.
  /// `activate` goes on with what was inherited; EUCLEAN if that makes no sense, which is forgotten
  /// then.
  virtual void activate() = 0;
  virtual void deactivate() = 0;
  /// Whether a process before this one left something in LiveMemory that the catalog may not have.
  [[nodiscard]] virtual bool inherits() = 0;
  /// Forgets it. Before the layer is activated.
  virtual void disinherit() = 0;
  /// Of an active layer to which nothing was written yet: what is missing of its data, for people;
  /// none as far as a quick look can tell.
  [[nodiscard]] virtual std::optional<std::string> damage() = 0;

  /// The run that begins at `offset`, at most `length` > 0 bytes of it.
  [[nodiscard]] virtual Run find(uint64_t offset, uint64_t length) = 0;

  /// Decides where the whole chunks [offset, offset + length), none of them present, are to live.
  /// The answer's length may be shorter: ask again for the rest. Makes room for the file itself.
  [[nodiscard]] virtual Run place(uint64_t offset, uint64_t length) = 0;

  /// What `place` gave was not written whole, and is not to be used.
  virtual void give_up(uint64_t offset, const Run& place) = 0;

  /// The chunks at `place` hold all of their data now (I4: call it after the write returned).
  virtual void set_present(uint64_t offset, const Run& place) = 0;

  /// Makes whole chunks absent or zero. Their space is given back after the next commit.
  virtual void take_away(uint64_t offset, uint64_t length, ChunkState state) = 0;

  /// Reserves space so that later writes to the range find some; content stays. ENOSPC, at once
  /// where it is plain that there is not enough; EOPNOTSUPP where it cannot be done. After a
  /// failure a part may be reserved.
  virtual void reserve(uint64_t offset, uint64_t length) = 0;

  /// Data was written into a present run in place: the next sync_data has something to do.
  virtual void note_write() = 0;

  /// Whether the map changed, or space waits to be given back, since the last `prepare`.
  [[nodiscard]] virtual bool dirty() = 0;
  /// Whether data was written since the last `sync_data`.
  [[nodiscard]] virtual bool unsynced() = 0;

  /// Of an image that ends at `size`: what is said of chunks behind it, by writes that have not
  /// raised the size yet, is left for the next time. A crash would leave chunks there that a later
  /// growth brings to light.
  [[nodiscard]] virtual std::unique_ptr<Changes> prepare(uint64_t size) = 0;
  /// As prepare, for a layer that is to end at `size` (chunks that begin at or behind it become
  /// absent with this commit); after the commit call `cut`. Nobody changes chunks behind `size`
  /// meanwhile.
  [[nodiscard]] virtual std::unique_ptr<Changes> prepare_cut(uint64_t size) = 0;
  virtual void sync_data() = 0;
  virtual void publish(Catalog::Change& change, const Changes& changes) = 0;
  /// What was prepared last is durable now.
  virtual void committed() = 0;
  /// Takes back what was prepared last, after a commit that found no space for it and left all as
  /// it was: it goes with the next one.
  virtual void put_back(const Changes& changes) = 0;
  /// Forgets what was changed since the last commit, after one failed (I8): all is as the catalog
  /// has it. Nobody changes chunks meanwhile. If it throws, what `find` says is not to be believed.
  virtual void discard() = 0;
  /// Does in memory what a committed prepare_cut did on disk.
  virtual void cut(uint64_t size) = 0;
  /// Whether `changes` freed space.
  [[nodiscard]] virtual bool frees(const Changes& changes) const = 0;
  /// Gives back what `changes` freed, as far as the map and the catalog agree still that it is not
  /// present. Throws what kept some of it from being given back: nothing else is wrong then.
  virtual void give_back(const Changes& changes, const HoldChunks& hold) = 0;
  /// Of a layer that keeps places for chunks: gives back the space of those chunks of [offset,
  /// offset + length) that the map and the catalog agree are not present. The caller holds those
  /// chunks' lock.
  virtual void reclaim(uint64_t offset, uint64_t length) = 0;

  /// The first flaw in [offset, offset + length), whole as far as it lies in there. What a commit
  /// under way will give back is none. It may be one for a moment only, of chunks whose state
  /// changes meanwhile, unless the caller holds their lock.
  [[nodiscard]] virtual std::optional<Flaw> next_flaw(uint64_t offset, uint64_t length) = 0;
  /// Behind which offset the CoW space holds nothing.
  [[nodiscard]] virtual uint64_t space_end() const = 0;

  /// Bytes of space that are this layer's own.
  [[nodiscard]] virtual uint64_t own_bytes() const = 0;
  /// The path of the CoW file that is the layer's own, and may not exist yet; none: there is none.
  [[nodiscard]] virtual std::optional<std::string> cow_path() const = 0;
  /// Removes what belongs to the layer outside the catalog. The catalog has forgotten it.
  virtual void remove_files() = 0;

  /// The largest size that an image can have whose layer it is.
  [[nodiscard]] virtual uint64_t largest_size() const { return kMaxImageSize; }
  /// Whether another program has its CoW file open for writing, as far as that can be told.
  [[nodiscard]] virtual bool is_used_elsewhere() const { return false; }
  /// Whether the parent shows through an absent chunk as a whole, since the layer's map has no room
  /// for more: then the chunk with the end of an image, absent, has to get its bytes before the
  /// image grows.
  [[nodiscard]] virtual bool shows_whole_chunks() const { return false; }

  /// Bytes up to which the parent shows through absent chunks; zeros beyond (I12).
  [[nodiscard]] uint64_t parent_limit() const {
    return parent_limit_->load(std::memory_order_acquire);
  }
  void set_parent_limit(uint64_t limit) { parent_limit_->store(limit, std::memory_order_release); }
  /// Takes what `place` says for the limit, and keeps it there from now on. `place` outlives the
  /// layer; nothing else is called meanwhile.
  void keep_parent_limit_in(std::atomic<uint64_t>& place) { parent_limit_ = &place; }

 private:
  std::atomic<uint64_t> own_parent_limit_;
  std::atomic<uint64_t>* parent_limit_ = &own_parent_limit_;
};

}  // namespace cowfs
