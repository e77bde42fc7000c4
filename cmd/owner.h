#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

namespace cowfs {

struct Owner {
  uid_t uid;
  std::optional<gid_t> gid;
};

/// "USER" or "USER:GROUP", each a name or a number. UsageError for who does not exist.
Owner parse_owner(const std::string& text);

/// Permission bits in octal, "0640". UsageError for anything else.
mode_t parse_mode(const std::string& text);

}  // namespace cowfs
