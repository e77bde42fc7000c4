#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>

#include "store/chunk_size.h"
#include "store/group_commit.h"
#include "store/host_fs.h"
#include "store/pool_file.h"
#include "store/slot_allocator.h"
#include "store/slot_layer.h"

namespace cowfs {

class Catalog;

/// The pool of a store that is open for writing: its file, and which slots are free. Thread-safe.
class Pool final : public SlotSpace {
 public:
  /// Reads from the catalog how many slots there are and which are in use. EUCLEAN if the file has
  /// room for fewer.
  Pool(const PoolFile& file, ChunkSize chunk, Catalog& catalog);

  [[nodiscard]] const PoolFile& pool_file() const { return file_; }

  std::optional<SlotRun> allocate(uint64_t want, std::optional<uint64_t> goal,
                                  SlotStream& stream) override {
    return slots_.allocate(want, goal, stream);
  }
  bool claim(SlotRun run) override { return slots_.claim(run); }
  /// Gives their space back to the host too, where it takes it.
  void give_back(std::span<const SlotRun> runs) override;
  bool has(uint64_t slot) override { return slot < slots_.slots(); }
  Place at(uint64_t slot) override { return {&file_.file(), PoolFile::offset_of(slot, chunk_)}; }
  bool shows_holes() override { return !file_.is_device(); }
  /// One sync serves many that wait for it.
  void sync() override;
  uint64_t failures() override { return failures_.load(); }
  void drop_cached() override { file_.file().drop_cached(); }
  std::string title() override { return pool_title(file_.path()); }

  /// All of it, and what is free.
  [[nodiscard]] Space space();

  /// Makes a pool in a file so large, in bytes, whole chunks of them; one on a device, for which
  /// none is said, as large as the device is. Durable. Error, with what to do, where it is no
  /// larger than before, and ERANGE where no pool can be so large.
  void grow(std::optional<uint64_t> bytes);
  /// Takes over what the device has grown by; whether it has.
  bool take_over_growth();

 private:
  void set_slots(uint64_t slots);

  const PoolFile& file_;
  const ChunkSize chunk_;
  Catalog& catalog_;
  SlotAllocator slots_;
  GroupCommit syncs_;
  std::atomic<uint64_t> failures_ = 0;
  std::atomic<bool> can_punch_ = true;
  std::mutex grow_mutex_;
};

}  // namespace cowfs
