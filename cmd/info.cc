#include <fmt/format.h>
#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/facts.h"
#include "cmd/sizes.h"
#include "cmd/table.h"
#include "cmd/target.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr HelpTexts kInfoHelp{
    .command = "info",
    .usage = "[OPTION]... PATH...",
    .what =
        "Shows the facts of images, mounts and stores: base, chunk size, policy, space left, "
        "format\n"
        "version, and of an image who uses it and its CoW file. A PATH is an image in a mount, a\n"
        "mount point, or the directory of a store; with --store, it is the name of an image.",
    .examples =
        "  cowfs info /mnt/vms\n"
        "  cowfs info /mnt/vms/dom1.img\n"
        "  cowfs info --json /srv/base.img.cowfs\n"
        "  cowfs info --store /srv/base.img.cowfs dom1.img\n"};

struct StoreText {
  std::string base;
  uint32_t chunk_size;
  std::string policy;
};

Json image_json(const ImageFacts& facts, const StoreText& store) {
  Json json{{"kind", "image"}};
  json.update(to_json(facts));
  const Json users = json["users"];
  json.erase("users");  // they come last
  json["cow_file"] = facts.cow_file ? Json(*facts.cow_file) : Json();
  json["base"] = store.base;
  json["chunk_size"] = store.chunk_size;
  json["policy"] = store.policy;
  json["space_limit"] = facts.space_limit ? Json(*facts.space_limit) : Json();
  json["parked"] = facts.parked;
  json["users"] = users;
  return json;
}

Json image_in_mount_json(const MountEntry& mount, const std::string& name) {
  const nlohmann::json facts = mount_facts(mount);
  return image_json(image_facts(mount, name, users_of_mount(mount.device)),
                    {.base = facts.at("base"),
                     .chunk_size = facts.at("chunk_size"),
                     .policy = facts.at("policy")});
}

Json time_json(std::optional<int64_t> ns) { return ns ? Json(format_time_exact(*ns)) : Json(); }

Json mount_json(const MountEntry& mount) {
  const nlohmann::json facts = mount_facts(mount);
  Json json{{"kind", "mount"}};
  for (const std::string key :
       {"mount",      "base",           "base_format",  "base_snapshot", "backing",
        "base_size",  "base_written",   "store",        "chunk_size",    "policy",
        "pool",       "format_version", "images",       "failed_images", "own_bytes",
        "free_bytes", "total_bytes",    "used_percent", "watermark",     "cache",
        "full",       "parked",         "read_only",    "server_pid",    "keeper_pid",
        "restarts",   "last_restart",   "resend",       "sandbox",       "version"}) {
    if (key == "base_written" || key == "last_restart") {
      const nlohmann::json& ns = facts.at(key + "_ns");
      json[key] = time_json(ns.is_null() ? std::nullopt : std::optional(ns.get<int64_t>()));
    } else if (key == "sandbox" || key == "base_format" || key == "base_snapshot" ||
               key == "backing" || key == "pool" || key == "failed_images") {
      json[key] = facts.value(key, Json());  // an older server has none
    } else {
      json[key] = facts.at(key);
    }
  }
  return json;
}

Json store_json(const std::string& directory) {
  const StoreSummary summary = read_store(directory, true);
  const StoreFacts& facts = summary.facts;
  uint64_t own_bytes = 0;
  size_t failed = 0;
  const std::vector<ImageRow> rows = named_images(summary);
  for (const ImageRow& row : rows) {
    const ImageFacts image = image_facts(summary, row);
    own_bytes += image.own_bytes;
    if (image.failure) ++failed;
  }
  const Space space = summary.pool ? Space{.total = summary.pool->size,
                                           .free = summary.pool->free,
                                           .available = summary.pool->free}
                                   : space_at(facts.directory);
  const bool mounted = summary.holder && !summary.holder->mount.empty();
  Json backing = Json::array();
  for (const BaseLink& file : facts.backing) {
    backing.push_back({{"path", file.path}, {"format", format_name(file.format)}});
  }
  return {{"kind", "store"},
          {"store", facts.directory},
          {"base", facts.base_path},
          {"base_format", format_name(facts.base_format)},
          {"base_snapshot", facts.base_snapshot ? Json(*facts.base_snapshot) : Json()},
          {"backing", backing},
          {"base_size", facts.base_size},
          {"base_written", time_json(summary.base_written_ns)},
          {"chunk_size", facts.chunk_size},
          {"policy", facts.policy},
          {"pool", pool_json(summary)},
          {"format_version", facts.format_version},
          {"images", rows.size()},
          {"failed_images", failed},
          {"own_bytes", own_bytes},
          {"free_bytes", space.available},
          {"total_bytes", space.total},
          {"mounted_on", mounted ? Json(summary.holder->mount) : Json()},
          {"version", COWFS_VERSION}};
}

Json describe_path(const std::string& path) {
  const std::string real = followed_path(path);
  const std::optional<MountEntry> mount = mount_at(real);
  if (mount && is_cowfs(*mount)) return mount_json(*mount);
  const std::optional<MountEntry> above = mount_at(std::filesystem::path(real).parent_path());
  if (above && is_cowfs(*above)) {
    const ImagePath image = image_in_mount(real);
    return image_in_mount_json(image.mount, image.name);
  }
  struct stat status {};
  std::error_code error;
  if (::stat(real.c_str(), &status) != 0) throw Error{errno, path};
  if (S_ISDIR(status.st_mode) && std::filesystem::exists(real + "/catalog.db", error)) {
    return store_json(real);
  }
  if (error) require_right_to(real);
  throw Error::with_message(
      ENOTTY, path + ": is neither an image in a mount nor a mount point nor a store");
}

std::vector<Json> describe_in_store(const std::string& directory, const Arguments& names) {
  if (names.empty()) return {store_json(directory)};
  const StoreSummary summary = read_store(directory, false);
  std::vector<Json> list;
  for (const ImageRow& row : named_images(summary, names)) {
    list.push_back(image_json(image_facts(summary, row), {.base = summary.facts.base_path,
                                                          .chunk_size = summary.facts.chunk_size,
                                                          .policy = summary.facts.policy}));
  }
  return list;
}

// ---- for people --------------------------------------------------------------------------------

std::string with_name(uint64_t id, const char* name) {
  return name != nullptr ? fmt::format("{} ({})", id, name) : fmt::format("{}", id);
}

std::string owner_text(const Json& json) {
  const auto uid = json["uid"].get<uid_t>();
  const auto gid = json["gid"].get<gid_t>();
  const passwd* user = ::getpwuid(uid);
  const std::string owner = with_name(uid, user != nullptr ? user->pw_name : nullptr);
  const group* group = ::getgrgid(gid);
  return owner + ", group " + with_name(gid, group != nullptr ? group->gr_name : nullptr);
}

std::string users_text(const Json& users) {
  std::string text;
  for (const Json& user : users) {
    if (!text.empty()) text += ", ";
    text += user["kind"] == "loop" ? user["device"].get<std::string>()
                                   : fmt::format("process {} ({})", user["pid"].get<pid_t>(),
                                                 user["command"].get<std::string>());
  }
  return text.empty() ? "nobody" : text;
}

/// "1.5 GiB (1610612736 bytes)".
std::string size_text(const Json& value) {
  const auto bytes = value.get<uint64_t>();
  return bytes < 1024 ? format_size(bytes)
                      : fmt::format("{} ({} bytes)", format_size(bytes), bytes);
}

/// "Landlock 7, no new privileges; capabilities: CAP_LEASE".
std::string sandbox_text(const Json& sandbox) {
  std::string names;
  for (const Json& name : sandbox["capabilities"]) {
    names += (names.empty() ? "" : ", ") + name.get<std::string>();
  }
  const Json& landlock = sandbox["landlock"];
  return fmt::format("{}, {}; capabilities: {}",
                     landlock.is_null() ? "no Landlock" : "Landlock " + landlock.dump(),
                     sandbox["no_new_privs"].get<bool>() ? "no new privileges" : "new privileges",
                     names.empty() ? "none" : names);
}

/// "/srv/golden.qcow2 (qcow2), /srv/old.img (raw)".
std::string backing_text(const Json& files) {
  std::string text;
  for (const Json& file : files) {
    text += (text.empty() ? "" : ", ") + file["path"].get<std::string>() + " (" +
            file["format"].get<std::string>() + ")";
  }
  return text;
}

std::string value_text(const std::string& key, const Json& json) {
  const Json& value = json[key];
  if (key == "backing") return backing_text(value);
  if (key == "users") return users_text(value);
  if (key == "sandbox" && value.is_object()) return sandbox_text(value);
  if (key == "cow_file" && value.is_null() && json["policy"] == "pool") {
    return "none, its chunks lie in the store's pool";
  }
  if (key == "pool" && value.is_object()) {
    return fmt::format("{}, {} of {} free", value["path"].get<std::string>(),
                       format_size(value["free_bytes"].get<uint64_t>()),
                       format_size(value["size"].get<uint64_t>()));
  }
  if (key == "cow_file" && value.is_null()) {
    return json["created"].is_null() ? "unknown, since the image cannot be read"
                                     : "none before the first write";
  }
  if (key == "mounted_on" && value.is_null()) return "no, it is not mounted";
  if (key == "base_written") {
    return value.is_null()
               ? "by nobody that was seen"
               : value.get<std::string>() + ": images may be damaged, see cowfs-consistency(7)";
  }
  if (key == "private_percent") {
    const auto percent = value.get<double>();
    return (on_terminal() ? percent_bar(percent) + " " : "") + fmt::format("{:.1f}%", percent);
  }
  if (key == "sandbox" && value.is_null()) return "none";
  if (value.is_null())
    return key == "last_restart" ? "never" : key == "keeper_pid" ? "none" : "unknown";
  if (key == "used_percent" || key == "watermark") return value.dump() + "%";
  if (key == "failed_images") return value.dump() + ", marked by cowfs ls";
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (key == "chunk_size" || key == "size" || key.ends_with("_size") || key.ends_with("_bytes") ||
      key == "space_limit") {
    return size_text(value);
  }
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string title_of(std::string key) {
  if (key == "users") return "used by";
  if (key == "private_percent") return "private";
  if (key == "cow_file") return "CoW file";
  if (key == "failure") return "failed";
  if (key == "used_percent") return "disk used";
  if (key == "full") return "when full";
  if (key == "parked") return "wait for space";
  if (key == "backing") return "backing files";
  if (key.ends_with("_bytes")) key.erase(key.size() - 6);
  std::replace(key.begin(), key.end(), '_', ' ');
  return key;
}

/// What is worth a line only where there is something of it.
bool is_dull(const std::string& key, const Json& value) {
  if (key == "failure" || key == "space_limit" || key == "watermark" || key == "pool" ||
      key == "base_snapshot") {
    return value.is_null();
  }
  if (key == "backing") return value.is_null() || value.empty();
  if (key == "failed_images") return value.is_null() || value == 0;
  return key == "parked" && value == 0;
}

void print_text(const Json& json) {
  const auto row = [](const std::string& title, const std::string& text) {
    fmt::print("{:<15} {}\n", title, printable(text));
  };
  for (const auto& item : json.items()) {
    if (item.key() == "kind" || item.key() == "gid") continue;
    if (is_dull(item.key(), item.value())) continue;
    if (item.key() == "uid") {
      row("owner", owner_text(json));
    } else if (item.key() == "name") {
      row("image", item.value());
    } else {
      row(title_of(item.key()), value_text(item.key(), json));
    }
  }
}

}  // namespace

int run_info(const Arguments& arguments) {
  Arguments paths;
  std::optional<std::string> store;
  bool as_json = false;
  CommandLine line(kInfoHelp);
  line.arguments("PATH", paths, "images, mount points, stores; with --store, names of images");
  line.option("--store", store, "DIR", "the store of the images, or what is shown without names");
  line.flag("--json", as_json, "print JSON; cowfs-info(1) has the keys");
  if (!line.parse(arguments)) return kDone;
  if (paths.empty() && !store) throw UsageError("a path is missing");

  // Everything is known before anything is printed.
  std::vector<Json> list;
  if (store) {
    list = describe_in_store(*store, paths);
  } else {
    for (const std::string& path : paths) list.push_back(describe_path(path));
  }
  if (as_json) {
    print_json(list.size() == 1 ? list[0] : Json(list));
    return kDone;
  }
  for (size_t i = 0; i < list.size(); ++i) {
    if (i > 0) fmt::print("\n");
    print_text(list[i]);
  }
  return kDone;
}

}  // namespace cowfs
