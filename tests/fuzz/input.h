#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

namespace cowfs::fuzz {

/// Takes the bytes of a fuzzer's input for this and that. Zeros and empty texts at its end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(data, size) {}

  [[nodiscard]] bool empty() const { return rest_.empty(); }
  template <typename Number>
  Number number() {
    Number value = 0;
    const std::span<const uint8_t> bytes = take(sizeof(value));
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  /// Below `end`.
  size_t choice(size_t end) { return number<uint8_t>() % end; }
  /// Up to 255 bytes; their number comes first.
  std::string text() {
    const std::span<const uint8_t> bytes = take(number<uint8_t>());
    return {bytes.begin(), bytes.end()};
  }

 private:
  std::span<const uint8_t> take(size_t size) {
    const std::span<const uint8_t> bytes = rest_.first(std::min(size, rest_.size()));
    rest_ = rest_.subspan(bytes.size());
    return bytes;
  }

  std::span<const uint8_t> rest_;
};

/// Ends the program, for the fuzzer to notice, if what has to hold does not.
inline void require(bool condition) {
  if (!condition) __builtin_trap();
}

}  // namespace cowfs::fuzz

/// What libFuzzer calls with each input; any exception but those that a target expects is a
/// finding.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
