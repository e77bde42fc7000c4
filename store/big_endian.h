#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace cowfs {

/// A number as it lies on disk, most significant byte first; of any alignment. For structs that are
/// read and written as a whole.
template <typename Number>
class BigEndian {
 public:
  BigEndian() = default;
  BigEndian(Number value) {  // NOLINT(google-explicit-constructor): it stands for the number
    for (size_t i = sizeof(Number); i-- > 0; value = static_cast<Number>(value >> 8U)) {
      bytes_[i] = static_cast<uint8_t>(value & 0xffU);
    }
  }
  operator Number() const {  // NOLINT(google-explicit-constructor): likewise
    uint64_t value = 0;
    for (const uint8_t byte : bytes_) value = value << 8U | byte;
    return static_cast<Number>(value);
  }

 private:
  std::array<uint8_t, sizeof(Number)> bytes_{};
};

}  // namespace cowfs
