#pragma once

#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "store/base_format.h"
#include "store/chunk_size.h"
#include "store/error.h"
#include "store/map_tree.h"
#include "store/qcow2_layer_header.h"
#include "store/slot_allocator.h"
#include "store/slot_layer.h"

namespace cowfs {

/// The qcow2 file that is a layer: its tables are the layer's committed map, and its clusters the
/// slots of its chunks; slot n is the n-th cluster. See qcow2_file.cc for what is durable when,
/// qcow2_refcounts.cc for how clusters are counted.
///
/// Thread-safe as SlotSpace, and `load_pages` with all; the rest is the committing thread's, and
/// `open` and `close` are called while nothing else is.
class Qcow2File final : public SlotSpace {
 public:
  /// Whose it is. What it names as its backing file is what the base is now.
  struct Identity {
    std::string path;
    std::string store;  ///< UUID
    uint64_t layer = 0;
    ChunkSize chunk;
    std::string backing_name;
    BaseFormat backing_format = BaseFormat::raw;
  };
  /// No file is opened yet. The hook outlives it.
  Qcow2File(Identity identity, const FaultHook* hook);
  ~Qcow2File() override;

  /// Makes the file, of a disk of `size` bytes that shows the backing file; whatever is there is
  /// replaced. Durable but for its directory's entry.
  void make(uint64_t size) const;
  /// The size of the disk, as the file says, whoever wrote it last; durable when it returns, unless
  /// the file was closed well, and said `known` before. Errors as `open`.
  [[nodiscard]] uint64_t peek_size(uint64_t known) const;

  /// Takes what the file is now for what it is to be when it is opened.
  void note_state();
  /// Opens it for writing, and makes good what a crash has left. EBUSY if another program writes to
  /// it, or has written to it since it was noted, or closed, last; EUCLEAN or EOPNOTSUPP, saying
  /// what to do, if it cannot be a layer.
  void open();
  /// Closes it; after this QEMU may have it. What is not durable then is so by itself later on, or
  /// counted anew at the next opening.
  void close();
  [[nodiscard]] bool is_open() const { return file_.has_value(); }
  /// Whether another program writes to the file, which is not open here.
  [[nodiscard]] bool is_used_elsewhere() const;
  /// Closes it as it is, after a failure.
  void abandon();
  /// Looks through all of its tables, of a file that nobody has open, and changes nothing: returns
  /// what the next opening makes good. Errors as `open`; EUCLEAN for what it cannot make good.
  [[nodiscard]] std::vector<std::string> check();

  /// Of the disk, as last made durable.
  [[nodiscard]] uint64_t size() const { return header_.size; }
  /// The largest that its tables can be made for.
  [[nodiscard]] static uint64_t largest_size(ChunkSize chunk);
  /// Bytes of space that the file takes; open or not.
  [[nodiscard]] uint64_t own_bytes() const;
  [[nodiscard]] const std::string& path() const { return identity_.path; }
  [[nodiscard]] int fd() const { return file_->fd(); }

  // ---- the committed map -----------------------------------------------------------------------

  void load_pages(uint64_t first, uint64_t count, const std::function<bool(const MapBits&)>& valid,
                  const MapTree::Receive& receive);
  [[nodiscard]] std::optional<uint64_t> last_page() const;

  /// Makes room for what is to come: for tables that these pages need, and those that a disk of
  /// `size` does. ENOSPC changes nothing that counts.
  void make_tables(std::span<const PageCopy> pages, uint64_t size);
  /// Whether a sync is due before `write_pages`.
  [[nodiscard]] bool has_new_tables() const { return !new_tables_.empty(); }
  /// Writes what the pages say, durably. What they name is durable already, as are new tables.
  void write_pages(std::span<const PageCopy> pages);
  /// Sets the size, durably; the map beyond it is to be cleared.
  void write_size(uint64_t size);
  /// Makes all from this chunk on absent, durably.
  void clear_from(uint64_t chunk);
  /// Reads again what is on disk, after a failure; what is taken stays so.
  void reload();

  // ---- SlotSpace -------------------------------------------------------------------------------

  std::optional<SlotRun> allocate(uint64_t want, std::optional<uint64_t> goal,
                                  SlotStream& stream) override;
  bool claim(SlotRun run) override { return slots_->claim(run); }
  void give_back(std::span<const SlotRun> runs) override;
  bool has(uint64_t slot) override { return slot > 0 && slot < slots_->slots(); }
  Place at(uint64_t slot) override { return {&*file_, chunk_.offset_of(slot)}; }
  bool shows_holes() override { return false; }
  void sync() override;
  uint64_t failures() override { return failures_.load(); }
  void drop_cached() override { file_->drop_cached(); }
  std::string title() override { return "layer " + identity_.path; }

 private:
  using Entry = BigEndian<uint64_t>;  // of a table
  /// What an empty region of the file is taken for; see SlotAllocator.
  static constexpr uint64_t kRegionSlots = 8192;

  [[nodiscard]] qcow2::LayerFacts read_header(const File& file) const;
  [[nodiscard]] Error damaged(const std::string& what) const;
  void require_ours(const qcow2::LayerFacts& facts) const;
  void require_untouched() const;
  void read_l1();
  /// Opens the file for reading or for writing.
  [[nodiscard]] File open_file(int flags) const;
  /// Writes the header as header_ is; not synced.
  void write_header();
  /// Says in the header that refcounts are not kept up; not synced.
  void mark_dirty();
  /// Puts the name of the backing file where it is in nobody's way, durably.
  void write_backing_name();
  /// Throws for an L2 entry, of this chunk, that a layer cannot have.
  void require_valid(uint64_t entry, uint64_t chunk) const;
  struct Counted {
    uint64_t shared = 0;     ///< entries without the flag that says that a cluster is theirs alone
    bool has_counts = true;  ///< the refcounts are where nothing else is
  };
  /// Taken as the tables say, which must lie in the file and not over each other.
  Counted count_clusters();
  /// Taken as the refcounts say, without a look at all L2 tables; those, and all other metadata,
  /// must not lie over each other, and data found later not over them.
  void trust_refcounts();
  void note_metadata();
  /// Whether it lies in the file, and is no larger than one can be.
  [[nodiscard]] bool has_refcount_table() const;
  /// What the refcount table says, which is there.
  [[nodiscard]] std::vector<Entry> refcount_blocks() const;
  /// Calls `visit` with each count that is not 0; false if they cannot be made out.
  bool for_each_refcount(const std::function<void(uint64_t cluster, unsigned count)>& visit) const;
  void write_refcounts();
  /// Whether anything is mapped from this chunk on.
  [[nodiscard]] bool has_entries_from(uint64_t chunk) const;
  /// For metadata. ENOSPC if there is none.
  [[nodiscard]] uint64_t allocate_cluster();
  [[nodiscard]] uint64_t allocate_neighbours(uint64_t count);
  void make_l1(uint64_t entries);

  [[nodiscard]] uint64_t entries_per_table() const { return chunk_.bytes() / sizeof(uint64_t); }
  [[nodiscard]] uint64_t l1_entries_for(uint64_t size) const;
  /// Clusters that refcounts can be kept for, and that their table can have.
  [[nodiscard]] uint64_t most_slots() const;
  [[nodiscard]] uint64_t most_table_clusters() const;
  [[nodiscard]] uint64_t file_clusters() const;
  [[nodiscard]] uint64_t clusters_for(uint64_t bytes) const {
    return chunk_.chunk_of(chunk_.up(bytes));
  }

  const Identity identity_;
  const ChunkSize chunk_;
  const FaultHook* const hook_;
  std::optional<File> file_;
  qcow2::LayerHeader header_;
  bool is_ours_ = false;  // the header is in the form in which cowfs writes it
  /// Offsets of L2 tables, as on disk or about to be; 0: none. Guarded by mutex_.
  std::vector<uint64_t> l1_;
  std::vector<uint64_t> new_tables_;  // indices in l1_ that are not on disk
  /// Clusters of the metadata that was there when refcounts were trusted, in order.
  std::vector<uint64_t> metadata_;
  std::atomic<bool> counts_anew_ = false;  // what is taken is not what the tables say
  bool read_only_ = false;
  /// Which file it was, and when it was changed; none: there was none.
  struct State {
    ino_t inode;
    int64_t mtime_ns;
    int64_t ctime_ns;
    bool operator==(const State&) const = default;
  };
  static State state_of(const struct stat& status);
  std::optional<State> noted_;
  std::mutex mutex_;
  std::optional<SlotAllocator> slots_;
  std::atomic<uint64_t> failures_ = 0;
  std::atomic<bool> can_punch_ = true;
};

}  // namespace cowfs
