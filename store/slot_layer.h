#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "store/chunk_size.h"
#include "store/layer.h"
#include "store/map_arena.h"
#include "store/slot_map.h"

namespace cowfs {

/// Room for chunks, in numbered slots of a chunk each: what an allocation policy has to say where
/// chunks may lie anywhere. Slots whose numbers follow each other lie behind each other in one
/// file. Thread-safe.
class SlotSpace {
 public:
  SlotSpace() = default;
  SlotSpace(const SlotSpace&) = delete;
  SlotSpace& operator=(const SlotSpace&) = delete;
  virtual ~SlotSpace() = default;

  /// Takes at most `want` > 0 slots that follow each other, for a layer that would like them to
  /// begin with `goal`, or else where its `stream` goes on. None: there is no room. May throw.
  [[nodiscard]] virtual std::optional<SlotRun> allocate(uint64_t want, std::optional<uint64_t> goal,
                                                        SlotStream& stream) = 0;
  /// Takes these, which a process before this one had taken; false, with nothing taken, if one of
  /// them is taken already or cannot be.
  [[nodiscard]] virtual bool claim(SlotRun run) = 0;
  /// Of taken slots whose freeing is durable, and which nobody reads or writes any more: lets them
  /// be used again (I5). Does not throw for want of anything.
  virtual void give_back(std::span<const SlotRun> runs) = 0;

  /// Whether there is such a slot.
  [[nodiscard]] virtual bool has(uint64_t slot) = 0;
  struct Place {
    const File* file;
    uint64_t offset;  ///< bytes
  };
  /// Where a slot lies that there is.
  [[nodiscard]] virtual Place at(uint64_t slot) = 0;
  /// Whether the host tells data from holes in what was never written.
  [[nodiscard]] virtual bool shows_holes() = 0;

  /// Makes durable all that was written before the call.
  virtual void sync() = 0;
  /// How often that has failed: what was written before, and not synced well since, may be lost
  /// (I8), whichever layer wrote it.
  [[nodiscard]] virtual uint64_t failures() = 0;
  /// Lets go of what the host has cached and need not write.
  virtual void drop_cached() = 0;

  /// What messages call it.
  [[nodiscard]] virtual std::string title() = 0;
};

/// What a commit of a SlotLayer copied.
struct SlotChanges : Layer::Changes {
  std::vector<PageCopy> pages;
  std::vector<uint64_t> taken;  ///< pages whose marks were cleared
  std::vector<SlotRun> freed;
  std::vector<SlotRun> cut_off;  ///< by this commit itself
  std::optional<uint64_t> remove_pages_from;
  bool for_catalog = true;  ///< whether the committed map is there

  [[nodiscard]] bool empty() const override {
    return !for_catalog || (pages.empty() && !remove_pages_from);
  }
};

/// A layer whose chunks lie in the slots of a space; see slot_layer.cc. What is left to say is
/// where its committed map is.
class SlotLayer : public Layer {
 public:
  void activate() override;
  void deactivate() override { map_.reset(); }
  bool inherits() override { return arena_.has_found(id_); }
  void disinherit() override;
  std::optional<std::string> damage() override { return std::nullopt; }
  Run find(uint64_t offset, uint64_t length) override;
  Run place(uint64_t offset, uint64_t length) override;
  void give_up(uint64_t offset, const Run& place) override;
  void set_present(uint64_t offset, const Run& place) override;
  void take_away(uint64_t offset, uint64_t length, ChunkState state) override;
  void reserve(uint64_t offset, uint64_t length) override;
  void note_write() override { data_dirty_ = true; }
  bool dirty() override;
  bool unsynced() override { return data_dirty_.load(); }
  std::unique_ptr<Changes> prepare(uint64_t size) override;
  std::unique_ptr<Changes> prepare_cut(uint64_t size) override;
  void sync_data() override;
  void committed() override { map_->committed(std::exchange(taken_, {})); }
  void put_back(const Changes& changes) override;
  void discard() override;
  void cut(uint64_t size) override;
  bool frees(const Changes& changes) const override;
  void give_back(const Changes& changes, const HoldChunks& hold) override;
  void reclaim(uint64_t /*offset*/, uint64_t /*length*/) override {}
  std::optional<Flaw> next_flaw(uint64_t offset, uint64_t length) override;
  uint64_t space_end() const override { return 0; }
  uint64_t own_bytes() const override;
  std::optional<std::string> cow_path() const override { return std::nullopt; }
  void remove_files() override;

 protected:
  /// `own_chunks`: slots that its committed map names, as far as known. All but the row outlive it.
  SlotLayer(ChunkSize chunk, MapArena& arena, SlotSpace& space, const LayerRow& row);

  using Valid = std::function<bool(const MapBits& bits)>;
  /// Calls `receive` with each committed page in [first, first + count) that has chunks. EUCLEAN
  /// if one is not `valid`.
  virtual void load_pages(uint64_t first, uint64_t count, const Valid& valid,
                          const SlotMap::Receive& receive) = 0;
  /// The highest page that may have chunks; none if none has.
  [[nodiscard]] virtual std::optional<uint64_t> last_page() = 0;
  /// Slots of which the committed map has forgotten that they are this layer's, and which are not
  /// given back yet.
  [[nodiscard]] virtual std::vector<SlotRun> take_forgotten() { return {}; }

  static const SlotChanges& slotted(const Changes& changes) {
    return static_cast<const SlotChanges&>(changes);
  }
  [[nodiscard]] ChunkSize chunk() const { return chunk_; }
  [[nodiscard]] uint64_t id() const { return id_; }
  [[nodiscard]] SlotMap& map() { return *map_; }
  [[nodiscard]] SlotSpace& space() { return space_; }
  /// Something may be present up to this byte.
  void raise_end(uint64_t offset) { raise_end_page(chunk_.chunk_of(offset)); }

 private:
  /// What is to be given back after the next commit.
  void add_freed(const std::vector<SlotRun>& runs);
  std::unique_ptr<SlotChanges> take_changes(uint64_t size);
  void inherit();
  void add_inherited(const MapArena::Found& found, SlotDifference& difference);
  [[nodiscard]] bool names_slots_that_are(const MapBits& bits) const;
  [[nodiscard]] Run run_at(uint64_t slot, ChunkState state, uint64_t length, uint64_t skip) const;
  [[nodiscard]] SlotRun slots_of(const Run& place) const {
    return {place.number, chunk_.chunk_of(place.length)};
  }
  /// Calls `visit` with each run of present chunks from `first` on.
  template <typename Visit>
  void for_each_present(uint64_t first, const Visit& visit);
  void raise_end_page(uint64_t end_chunk);
  void give_back_slots(const std::vector<SlotRun>& runs);

  const ChunkSize chunk_;
  MapArena& arena_;
  SlotSpace& space_;
  const uint64_t id_;

  // Of the committing thread:
  std::vector<uint64_t> taken_;   // pages that were prepared last
  bool cutting_ = false;          // by the commit that is under way
  uint64_t synced_failures_;      // of the space, when this layer had nothing unsynced last
  std::set<uint64_t> inherited_;  // slots that the committed map had not; until `cut`

  std::unique_ptr<SlotMap> map_;
  std::atomic<uint64_t> end_page_ = 0;  // nothing is present from there on
  SlotStream stream_;                   // the space's to guard
  std::atomic<int64_t> own_chunks_;     // slots that are taken for this layer
  std::atomic<bool> data_dirty_;
  std::mutex mutex_;            // guards freed_
  std::vector<SlotRun> freed_;  // since the last prepare
};

}  // namespace cowfs
