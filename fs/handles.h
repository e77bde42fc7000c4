#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "store/live_memory.h"

namespace cowfs {

/// Which images are open, and how often. It lies in LiveMemory, so that what a server has open is
/// open with the one that takes over, under the same file handles (fuse_file_info.fh). Thread-safe.
class Handles {
 public:
  struct Open {
    uint64_t image;
    bool writes;
  };
  struct Count {
    uint64_t openers = 0;
    uint64_t writers = 0;
  };

  explicit Handles(std::shared_ptr<LiveMemory> memory);
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;

  /// A new file handle. `request`, not 0, is the number of the request that opens. ENOMEM.
  [[nodiscard]] uint64_t add(uint64_t request, const Open& open);
  /// The handle that an earlier process made for this request, if it is open still.
  [[nodiscard]] std::optional<uint64_t> find(uint64_t request);
  /// Closes it. None: it was closed before, by a process whose answer was lost.
  [[nodiscard]] std::optional<Open> remove(uint64_t handle);

  [[nodiscard]] Count count(uint64_t image);
  /// All that are open.
  [[nodiscard]] std::vector<Open> all();

 private:
  struct Record {
    std::atomic<uint64_t> request;  ///< 0: free
    std::atomic<uint64_t> image;
    std::atomic<uint32_t> generation;  ///< of the handle: a record is used again
    std::atomic<uint32_t> writes;
    uint64_t unused;
  };
  static_assert(sizeof(Record) == 32);

  static constexpr uint32_t per_segment() {
    return 2048;  // LiveMemory::segment_bytes(handles) / sizeof(Record)
  }
  Record& record(uint32_t index) { return segments_[index / per_segment()][index % per_segment()]; }
  void use_segment(void* memory);

  const std::shared_ptr<LiveMemory> memory_;
  std::mutex mutex_;  // guards what follows
  std::vector<Record*> segments_;
  std::vector<uint32_t> free_;
  std::unordered_map<uint64_t, uint64_t> found_;  // handles of an earlier process, by request
  std::unordered_map<uint64_t, Count> counts_;    // by image
};

}  // namespace cowfs
