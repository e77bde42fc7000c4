#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace cowfs {

/// Memory for what a server knows beyond the catalog: the live chunk maps, sizes and times, and who
/// has what open. As a file of memory (memfd_create(2)) that another process holds it survives the
/// server, and the next one goes on with what it finds (I2). What lies in it holds no pointers.
///
/// It is divided into regions, of which each grows by segments of one size. Bytes that nobody wrote
/// are zero. Thread-safe.
class LiveMemory {
 public:
  enum class Region : uint32_t { images, handles, maps, requests };

  /// Memory of this process alone, for one after which nobody comes.
  LiveMemory();
  /// `fd` as made by `make`, blank or with what an earlier process left; takes a descriptor of its
  /// own. EPROTONOSUPPORT, with its version, if it was written by a program that laid it out
  /// otherwise; EINVAL if it is something else.
  explicit LiveMemory(int fd);
  LiveMemory(const LiveMemory&) = delete;
  LiveMemory& operator=(const LiveMemory&) = delete;
  ~LiveMemory();

  /// A new, blank file of memory, for a LiveMemory.
  static int make();

  /// Whether an earlier process left something in it.
  [[nodiscard]] bool taken_over() const { return taken_over_; }

  /// Bytes for what has no region, for whom it concerns.
  static constexpr size_t kNoteBytes = 2048;
  [[nodiscard]] void* notes() const;

  /// The segments of a region that are in use.
  [[nodiscard]] uint32_t segments(Region region) const;
  /// The memory of the next segment of the region. ENOMEM if there is none. Not two at a time for
  /// one region.
  void* add_segment(Region region);
  /// The memory of a segment in use, `index` < segments(region). To be called once for each.
  void* map_segment(Region region, uint32_t index);

  /// Bytes of a segment of the region.
  static size_t segment_bytes(Region region);
  static uint32_t most_segments(Region region);

 private:
  struct Header;

  void* map(uint64_t offset, size_t bytes);

  int fd_ = -1;  // none: memory of this process alone
  bool taken_over_ = false;
  Header* header_ = nullptr;
  std::mutex mutex_;  // guards what follows
  struct Mapping {
    void* memory;
    size_t bytes;
  };
  std::vector<Mapping> mappings_;
};

}  // namespace cowfs
