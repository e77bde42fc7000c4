#pragma once

#include <bit>
#include <cstdint>

namespace cowfs {

/// The largest virtual size of an image: 1 PiB.
constexpr uint64_t kMaxImageSize = uint64_t{1} << 50;

/// The store's chunk size in bytes, and arithmetic with it.
class ChunkSize {
 public:
  static constexpr uint32_t kMin = 4 << 10;
  static constexpr uint32_t kMax = 2 << 20;

  static bool valid(uint64_t bytes) {
    return bytes >= kMin && bytes <= kMax && std::has_single_bit(bytes);
  }

  /// `bytes` must be valid.
  explicit ChunkSize(uint32_t bytes) : shift_(static_cast<unsigned>(std::countr_zero(bytes))) {}

  [[nodiscard]] uint64_t bytes() const { return uint64_t{1} << shift_; }
  [[nodiscard]] uint64_t chunk_of(uint64_t offset) const { return offset >> shift_; }
  [[nodiscard]] uint64_t offset_of(uint64_t chunk) const { return chunk << shift_; }
  [[nodiscard]] uint64_t down(uint64_t offset) const { return offset & ~(bytes() - 1); }
  [[nodiscard]] uint64_t up(uint64_t offset) const { return down(offset + bytes() - 1); }
  [[nodiscard]] bool aligned(uint64_t offset) const { return down(offset) == offset; }

 private:
  unsigned shift_;
};

}  // namespace cowfs
