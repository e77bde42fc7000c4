#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "store/byte_cache.h"
#include "store/helpers.h"

namespace cowfs {

/// What all files of a base share: memory, bounded whatever the files say, and threads.
struct BaseCaches {
  ByteCache tables{size_t{32} << 20U};    ///< pieces of mapping tables, as they lie on disk
  ByteCache clusters{size_t{64} << 20U};  ///< decompressed clusters
  Helpers helpers;                        ///< decompress for who reads several clusters
};

/// The disk that one image file holds, together with what lies below it: one class for each format.
/// Offsets, lengths and sizes are bytes of that disk. Thread-safe.
class BaseContent {
 public:
  explicit BaseContent(uint64_t size) : size_(size) {}
  BaseContent(const BaseContent&) = delete;
  BaseContent& operator=(const BaseContent&) = delete;
  virtual ~BaseContent() = default;

  [[nodiscard]] uint64_t size() const { return size_; }

  /// [offset, offset + size of buffer) must lie inside the disk. EIO where the file is damaged or
  /// has become shorter: never makes up zeros.
  virtual void read(std::span<std::byte> buffer, uint64_t offset) const = 0;
  /// As read, of what can be had without waiting for storage and without decompressing; returns how
  /// many bytes of the front that is.
  [[nodiscard]] virtual size_t read_cached(std::span<std::byte> buffer, uint64_t offset) const = 0;

  /// How much of maps may be looked through for one answer, in entries: they are as long as their
  /// files say, which may be a stranger's (I10).
  struct Effort {
    uint64_t left = uint64_t{1} << 27U;
  };
  /// Where the next data, or hole, begins in [offset, end), which lies inside the disk. Nothing, or
  /// `end`, if there is none. What is not looked at any more, for the effort, counts as data.
  [[nodiscard]] virtual std::optional<uint64_t> next_data(uint64_t offset, uint64_t end,
                                                          Effort& effort) const = 0;
  [[nodiscard]] virtual uint64_t next_hole(uint64_t offset, uint64_t end, Effort& effort) const = 0;

 private:
  const uint64_t size_;
};

}  // namespace cowfs
