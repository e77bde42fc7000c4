#include "cmd/mount_options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include "cmd/command.h"
#include "fs/mount.h"
#include "store/names.h"

namespace cowfs {
namespace {

struct Item {
  std::string name;
  std::optional<std::string> value;

  [[nodiscard]] std::string text() const { return value ? name + "=" + *value : name; }
};

[[noreturn]] void refuse(const Item& item, const std::string& why) {
  throw UsageError("mount option '" + item.text() + "': " + why);
}

/// The options of a list; an empty one counts for nothing.
std::vector<Item> split(std::string_view list) {
  std::vector<Item> items(1);
  bool quoted = false;
  const auto text = [&]() -> std::string& {
    Item& item = items.back();
    return item.value ? *item.value : item.name;
  };
  for (const char c : list) {
    Item& item = items.back();
    if (c == '"' && item.value) {
      quoted = !quoted;
    } else if (c == ',' && !quoted) {
      items.emplace_back();
    } else if (c == '=' && !item.value) {
      item.value = "";
    } else {
      text() += c;
    }
  }
  if (quoted) {
    refuse(items.back(), "the quotation mark that ends it is missing");
  }
  std::erase_if(items, [](const Item& item) { return item.name.empty() && !item.value; });
  return items;
}

template <typename Number>
Number number(const Item& item, std::string_view text, int base, Number largest, const char* form) {
  Number value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value, base);
  if (parsed.ec != std::errc() || parsed.ptr != end || value > largest) refuse(item, form);
  return value;
}

template <typename Number>
Number number(const Item& item, int base, Number largest, const char* form) {
  return number(item, item.value.value_or(""), base, largest, form);
}

/// Meant for mount(8), fstab(5) and systemd, or what is so anyway.
bool passed_over(std::string_view name) {
  static constexpr std::array<std::string_view, 19> kNames{"defaults",
                                                           "auto",
                                                           "noauto",
                                                           "user",
                                                           "users",
                                                           "nouser",
                                                           "owner",
                                                           "noowner",
                                                           "group",
                                                           "nogroup",
                                                           "_netdev",
                                                           "nofail",
                                                           "comment",
                                                           "async",
                                                           "atime",
                                                           "relatime",
                                                           "diratime",
                                                           "nodiratime",
                                                           "default_permissions"};
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end() || name.starts_with("x-") ||
         name.starts_with("X-");
}

/// libfuse's and the kernel's, which get them as they stand.
bool is_fuse_option(std::string_view name) {
  static constexpr std::array<std::string_view, 16> kNames{
      "fsname",    "nosuid",     "nodev",       "noexec",      "suid",  "dev",
      "exec",      "sync",       "dirsync",     "noatime",     "debug", "context",
      "fscontext", "defcontext", "rootcontext", "auto_unmount"};
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

CacheMode cache_mode(const Item& item) {
  if (item.value == "writeback") return CacheMode::writeback;
  if (item.value == "none") return CacheMode::none;
  refuse(item, "the cache is writeback or none");
}

FullMode full_mode(const Item& item) {
  if (item.value == "wait") return FullMode::wait;
  if (item.value == "error") return FullMode::error;
  refuse(item, "what a write without space does is wait or error");
}

Resend resend_way(const Item& item) {
  if (item.value == "kernel") return Resend::kernel;
  if (item.value == "slots") return Resend::slots;
  refuse(item, "what a dead server leaves comes again by kernel or slots");
}

/// "80:90:95", or "none".
std::vector<unsigned> watermarks(const Item& item) {
  std::vector<unsigned> marks;
  std::string_view rest = item.value ? std::string_view(*item.value) : std::string_view();
  if (rest == "none") return marks;
  while (true) {
    const size_t colon = rest.find(':');
    const auto mark = number<unsigned>(item, rest.substr(0, colon), 10, 100,
                                       "is no list like 80:90:95, of percent");
    if (mark == 0) refuse(item, "0 % is always reached");
    marks.push_back(mark);
    if (colon == std::string_view::npos) return marks;
    rest.remove_prefix(colon + 1);
  }
}

void apply(const Item& item, MountOptions& options) {
  const bool plain = !item.value;
  const std::string& name = item.name;
  constexpr uint32_t kLargestId = UINT32_MAX - 1;  // -1 stands for none
  if (plain && (name == "ro" || name == "rw")) {
    options.read_only = name == "ro";
  } else if (plain && name == "allow_other") {
    options.allow_other = true;
    std::erase(options.fuse, "allow_root");
  } else if (plain && name == "allow_root") {
    options.allow_other = false;
    options.fuse.push_back(name);
  } else if (plain && (name == "tune" || name == "no_tune")) {
    options.tune = name == "tune";
    options.tune_always = options.tune;
  } else if (name == "uid") {
    options.uid = number<uid_t>(item, 10, kLargestId, "is no user number");
  } else if (name == "max_read") {
    options.max_read = number<uint32_t>(item, 10, 1U << 20U, "is no size in bytes up to 1048576");
  } else if (name == "gid") {
    options.gid = number<gid_t>(item, 10, kLargestId, "is no group number");
  } else if (name == "umask") {
    options.umask = number<mode_t>(item, 8, 0777, "is no octal number up to 777");
  } else if (name == "cache") {
    options.cache = cache_mode(item);
  } else if (name == "full") {
    options.full = full_mode(item);
  } else if (name == "resend") {
    options.resend = resend_way(item);
  } else if (name == "watermarks") {
    options.watermarks = watermarks(item);
  } else if (name == "on_watermark") {
    if (item.value.value_or("").empty()) refuse(item, "a command is missing");
    options.on_watermark = *item.value;
  } else if (name == "subtype") {
    if (item.value != "cowfs") refuse(item, "the type of these mounts is fuse.cowfs");
  } else if (is_fuse_option(name)) {
    options.fuse.push_back(item.value ? fuse_option(name, *item.value) : name);
  } else if (!passed_over(name)) {
    refuse(item, "is unknown");
  }
}

}  // namespace

MountOptions parse_mount_options(const std::vector<std::string>& lists,
                                 bool allow_other_by_default) {
  MountOptions options;
  options.allow_other = allow_other_by_default;
  for (const std::string& list : lists) {
    for (const Item& item : split(list)) apply(item, options);
  }
  return options;
}

}  // namespace cowfs
