#include "cmd/sizes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>

#include "cmd/command.h"
#include "store/chunk_size.h"

namespace cowfs {
namespace {

constexpr std::string_view kUnits = "KMGTP";

[[noreturn]] void refuse(std::string_view text, int code, std::string_view why) {
  throw UsageError(fmt::format("size '{}': {}", text, why), code);
}

/// Power of 1024 that a unit stands for, 0 to 5; -1 if it is none.
int power_of(std::string_view unit) {
  if (unit.empty()) return 0;
  if (unit.size() != 1 && unit.substr(1) != "iB") return -1;
  const char letter =
      unit[0] >= 'a' && unit[0] <= 'z' ? static_cast<char>(unit[0] - 'a' + 'A') : unit[0];
  const size_t at = kUnits.find(letter);
  return at == std::string_view::npos ? -1 : static_cast<int>(at) + 1;
}

}  // namespace

uint64_t parse_size(std::string_view text) {
  constexpr std::string_view kForm =
      "is no size; write bytes, or a number with K, M, G, T or P behind it";
  const std::string_view number = text.substr(0, text.find_first_not_of("0123456789."));
  const int power = power_of(text.substr(number.size()));
  const size_t point = number.find('.');
  const std::string_view whole = number.substr(0, point);
  const std::string_view fraction =
      point == std::string_view::npos ? std::string_view() : number.substr(point + 1);
  const bool has_point = point != std::string_view::npos;
  if (power < 0 || whole.empty() || fraction.find('.') != std::string_view::npos ||
      (has_point && (fraction.empty() || power == 0))) {
    refuse(text, EINVAL, kForm);
  }

  uint64_t units = 0;
  const auto parsed = std::from_chars(whole.data(), whole.data() + whole.size(), units);
  const unsigned shift = 10U * static_cast<unsigned>(power);
  constexpr uint64_t kLimit = uint64_t{1} << 63U;
  if (parsed.ec != std::errc() || units >= kLimit >> shift) refuse(text, ERANGE, "is too large");
  // The part of a unit, digit by digit from the last one; dropping what is less than a byte at each
  // step comes to the same as dropping it at the end.
  uint64_t part = 0;
  for (auto digit = fraction.rbegin(); digit != fraction.rend(); ++digit) {
    part = ((static_cast<uint64_t>(*digit - '0') << shift) + part) / 10;
  }
  return (units << shift) + part;
}

uint64_t parse_image_size(std::string_view text) {
  const uint64_t size = parse_size(text);
  if (size > kMaxImageSize) refuse(text, EFBIG, "is too large; 1P is the most");
  return size;
}

uint32_t parse_chunk_size(std::string_view text) {
  uint64_t bytes = 0;
  try {
    bytes = parse_size(text);
  } catch (const Error& error) {
    throw UsageError(fmt::format("chunk {}", error.what()), error.code());
  }
  if (!ChunkSize::valid(bytes)) {
    throw UsageError(fmt::format("chunk size '{}': is not a power of two from 4K to 2M", text));
  }
  return static_cast<uint32_t>(bytes);
}

std::string format_size(uint64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (value /= 1024; value >= 1023.5 && unit + 1 < kUnits.size(); value /= 1024) ++unit;
  const double tenths = std::round(value * 10) / 10;
  const bool with_decimal = tenths < 10 && tenths != std::floor(tenths);
  return fmt::format("{:.{}f} {}iB", value, with_decimal ? 1 : 0, kUnits[unit]);
}

double private_percent(uint64_t own_bytes, uint64_t size) {
  if (size == 0) return 0;
  const double percent = 100.0 * static_cast<double>(own_bytes) / static_cast<double>(size);
  return std::round(std::min(percent, 100.0) * 10) / 10;
}

}  // namespace cowfs
