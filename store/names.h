#pragma once

#include <string>
#include <string_view>

namespace cowfs {

/// The longest name of an image, in bytes.
constexpr size_t kMaxNameBytes = 200;

/// EINVAL, saying why, if `name` cannot name an image: it is empty, `.` or `..`, longer than 200
/// bytes, holds `/`, `@` or a control character, or begins with `.cowfs` or `.snapshots`.
void check_name(std::string_view name);

/// `name` with control characters and bytes that are no UTF-8 written as \xHH, for terminals.
std::string printable(std::string_view name);

}  // namespace cowfs
