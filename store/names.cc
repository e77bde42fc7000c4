#include "store/names.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>

#include "store/error.h"

namespace cowfs {
namespace {

bool is_control(unsigned char byte) { return byte < 0x20 || byte == 0x7f; }

std::string escaped(unsigned char byte) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  return {'\\', 'x', kDigits[byte >> 4U], kDigits[byte & 15U]};
}

/// Characters that show nothing of their own and change how what is around them is shown: control
/// characters, which terminals obey, and those that turn the direction of text, that take no width,
/// or that end a line.
bool is_invisible(uint32_t code) {
  struct Range {
    uint32_t first;
    uint32_t last;
  };
  static constexpr std::array<Range, 11> kRanges{{{0x00, 0x1f},
                                                  {0x7f, 0x9f},
                                                  {0xad, 0xad},      // soft hyphen
                                                  {0x61c, 0x61c},    // Arabic letter mark
                                                  {0x180e, 0x180e},  // Mongolian vowel separator
                                                  {0x200b, 0x200f},  // zero width; marks
                                                  {0x2028, 0x202e},  // lines; embeddings
                                                  {0x2060, 0x206f},  // joiners; isolates
                                                  {0xfeff, 0xfeff},  // byte order mark
                                                  {0xfff9, 0xfffb},  // annotations
                                                  {0xe0000, 0xe007f}}};  // tags
  return std::any_of(kRanges.begin(), kRanges.end(), [code](const Range& range) {
    return range.first <= code && code <= range.last;
  });
}

/// A character at the front of a text; length 0 where there is no well-formed one (RFC 3629).
struct Character {
  size_t length;
  uint32_t code;
};

Character first_character(std::string_view text) {
  const auto byte = [&](size_t i) {
    return static_cast<uint32_t>(static_cast<unsigned char>(text[i]));
  };
  const uint32_t lead = byte(0);
  const size_t length = lead < 0x80   ? 1
                        : lead < 0xc2 ? 0
                        : lead < 0xe0 ? 2
                        : lead < 0xf0 ? 3
                        : lead < 0xf5 ? 4
                                      : 0;
  if (length <= 1) return {length, lead};
  if (text.size() < length) return {0, 0};
  uint32_t code = lead & (0x7fU >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0U) != 0x80) return {0, 0};
    code = (code << 6U) | (byte(i) & 0x3fU);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kSmallest[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
    return {0, 0};
  }
  return {length, code};
}

}  // namespace

void check_name(std::string_view name) {
  const auto refuse = [&](const std::string& why) {
    throw Error::with_message(EINVAL, "image name '" + std::string(name) + "': " + why);
  };
  if (name.empty() || name == "." || name == "..") refuse("is no name for an image");
  if (name.size() > kMaxNameBytes) {
    refuse("is " + std::to_string(name.size()) + " bytes long; " + std::to_string(kMaxNameBytes) +
           " is the most");
  }
  if (name.find('/') != std::string_view::npos) refuse("holds a slash; a store has no folders");
  if (name.find('@') != std::string_view::npos) refuse("holds '@', which is kept for snapshots");
  if (std::any_of(name.begin(), name.end(),
                  [](char c) { return is_control(static_cast<unsigned char>(c)); })) {
    refuse("holds a control character");
  }
  if (name.starts_with(".cowfs") || name.starts_with(".snapshots")) {
    refuse("begins with a name that cowfs keeps for itself");
  }
}

std::string printable(std::string_view text) {
  std::string shown;
  while (!text.empty()) {
    const auto [length, code] = first_character(text);
    const std::string_view bytes = text.substr(0, std::max<size_t>(length, 1));
    if (length == 0 || is_invisible(code)) {
      for (const char byte : bytes) shown += escaped(static_cast<unsigned char>(byte));
    } else {
      shown += bytes;
    }
    text.remove_prefix(bytes.size());
  }
  return shown;
}

}  // namespace cowfs
