#pragma once

#include <endian.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace cowfs {

/// A number as it lies on disk, most significant byte first; of any alignment. For structs that are
/// read and written as a whole.
template <typename Number>
class BigEndian {
 public:
  BigEndian() = default;
  BigEndian(Number value) {  // NOLINT(google-explicit-constructor): it stands for the number
    value = swapped(value);
    std::memcpy(bytes_.data(), &value, sizeof(value));
  }
  operator Number() const {  // NOLINT(google-explicit-constructor): likewise
    Number value;
    std::memcpy(&value, bytes_.data(), sizeof(value));
    return swapped(value);
  }

 private:
  /// Between the host's order and that on disk, one way as the other. Whole tables are turned by
  /// it: byte by byte that takes several times as long.
  static Number swapped(Number value) {
    static_assert(sizeof(Number) <= sizeof(uint64_t));
    if constexpr (sizeof(Number) == sizeof(uint64_t)) return htobe64(value);
    if constexpr (sizeof(Number) == sizeof(uint32_t)) return htobe32(value);
    if constexpr (sizeof(Number) == sizeof(uint16_t)) return htobe16(value);
    return value;
  }

  std::array<uint8_t, sizeof(Number)> bytes_{};
};

}  // namespace cowfs
