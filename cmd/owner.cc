#include "cmd/owner.h"

#include <grp.h>
#include <pwd.h>

#include <cerrno>
#include <charconv>
#include <cstdint>

#include "cmd/command.h"

namespace cowfs {
namespace {

std::optional<uint32_t> parse_number(const std::string& text, int base) {
  uint32_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value, base);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

[[noreturn]] void refuse(const std::string& what, const std::string& why) {
  throw UsageError(what + ": " + why);
}

/// -1 stands for "as it is" in chown(2).
uint32_t parse_id(const std::string& what, const std::string& text) {
  const std::optional<uint32_t> id = parse_number(text, 10);
  if (!id || *id == UINT32_MAX) refuse(what, "there is none of this name or number");
  return *id;
}

}  // namespace

Owner parse_owner(const std::string& text) {
  const size_t colon = text.find(':');
  const std::string user = text.substr(0, colon);
  Owner owner{};
  const passwd* user_entry = ::getpwnam(user.c_str());
  owner.uid = user_entry != nullptr ? user_entry->pw_uid : parse_id("user '" + user + "'", user);
  if (colon == std::string::npos) return owner;
  const std::string name = text.substr(colon + 1);
  const group* group_entry = ::getgrnam(name.c_str());
  owner.gid = group_entry != nullptr ? group_entry->gr_gid : parse_id("group '" + name + "'", name);
  return owner;
}

mode_t parse_mode(const std::string& text) {
  const std::optional<uint32_t> mode = parse_number(text, 8);
  if (!mode || *mode > 0777) refuse("mode '" + text + "'", "is no octal number up to 777");
  return *mode;
}

}  // namespace cowfs
