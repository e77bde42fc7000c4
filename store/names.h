#pragma once

#include <string>
#include <string_view>

namespace cowfs {

/// The longest name of an image, in bytes.
constexpr size_t kMaxNameBytes = 200;

/// EINVAL, saying why, if `name` cannot name an image: it is empty, `.` or `..`, longer than 200
/// bytes, holds `/`, `@` or a control character, or begins with `.cowfs` or `.snapshots`.
void check_name(std::string_view name);

/// Text from elsewhere as people are to see it (tables, messages and the log pass through here), in
/// one line: what is no UTF-8, and each byte of a character that would not be seen or change how
/// others are shown (control characters, line ends, turns of direction, zero width), is written as
/// \xHH. Doing it twice changes nothing.
std::string printable(std::string_view text);

}  // namespace cowfs
