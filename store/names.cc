#include "store/names.h"

#include <algorithm>
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

/// Length of the well-formed UTF-8 character at the front of `text` (RFC 3629), or 0. C1 control
/// characters (U+0080..U+009F) count as malformed: terminals obey them.
size_t utf8_length(std::string_view text) {
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
  if (length <= 1) return length;
  if (text.size() < length) return 0;
  uint32_t code = lead & (0x7fU >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0U) != 0x80) return 0;
    code = (code << 6U) | (byte(i) & 0x3fU);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0xa0, 0x800, 0x10000};
  if (code < kSmallest[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return 0;
  return length;
}

}  // namespace

void check_name(std::string_view name) {
  const auto refuse = [&](const std::string& why) {
    throw Error::with_message(EINVAL, "image name '" + printable(name) + "': " + why);
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

std::string printable(std::string_view name) {
  std::string text;
  while (!name.empty()) {
    const auto byte = static_cast<unsigned char>(name.front());
    const size_t length = is_control(byte) ? 0 : utf8_length(name);
    if (length == 0) {
      text += escaped(byte);
      name.remove_prefix(1);
    } else {
      text += name.substr(0, length);
      name.remove_prefix(length);
    }
  }
  return text;
}

}  // namespace cowfs
