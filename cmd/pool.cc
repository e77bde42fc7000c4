#include "store/pool.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/facts.h"
#include "cmd/sizes.h"
#include "cmd/target.h"
#include "fs/control.h"
#include "store/error.h"
#include "store/pool_restore.h"

namespace cowfs {
namespace {

constexpr HelpTexts kPoolHelp{
    .command = "pool",
    .usage = "[OPTION]... info|grow|restore-header MOUNT|STORE [SIZE]",
    .what =
        "Tells of the pool in which a store of policy pool keeps what its machines write, or makes "
        "it\nlarger: a file to SIZE; a block device that has grown is taken over without SIZE. Of "
        "a store\nthat is not mounted, writes the pool's header anew after something was written "
        "over it.",
    .examples =
        "  cowfs pool info /mnt/vms\n"
        "  cowfs pool grow /mnt/vms 200G\n"
        "  cowfs pool grow /srv/base.img.cowfs 200G\n"
        "  cowfs pool restore-header /srv/base.img.cowfs\n"};

[[noreturn]] void refuse_without_pool(const std::string& path, const std::string& policy) {
  throw Error::with_message(
      EOPNOTSUPP, path + ": has no pool: its policy is " + policy +
                      "; a pool comes with --policy pool, when a store is made by cowfs mount");
}

std::optional<MountEntry> cowfs_mount_at(const std::string& path) {
  const std::optional<MountEntry> mount = mount_at(followed_path(path));
  return mount && is_cowfs(*mount) ? mount : std::nullopt;
}

void require_store(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw Error{errno, path};
  require_right_to(path);
  if (!std::filesystem::exists(path + "/catalog.db")) {
    throw Error::with_message(ENOTTY, path + ": is neither a mount point nor a store");
  }
}

Json facts_of_pool(const std::string& path) {
  Json json;
  Json problem;
  std::string policy;
  if (const std::optional<MountEntry> mount = cowfs_mount_at(path)) {
    const nlohmann::json facts = mount_facts(*mount);
    json = facts.value("pool", nlohmann::json());
    policy = facts.at("policy");
  } else {
    require_store(path);
    const StoreSummary summary = read_store(path, true);
    json = pool_json(summary);
    if (summary.pool && !summary.pool->problem.empty()) problem = summary.pool->problem;
    policy = summary.facts.policy;
  }
  if (json.is_null()) refuse_without_pool(path, policy);
  const auto size = json.at("size").get<uint64_t>();
  const auto free = json.at("free_bytes").get<uint64_t>();
  Json ordered{{"pool", json.at("path")},
               {"device", json.at("device")},
               {"size", size},
               {"used_bytes", size - free},
               {"free_bytes", free},
               {"used_percent", private_percent(size - free, size)},
               {"problem", problem}};
  return ordered;
}

void print_pool(const Json& json) {
  const auto size = [&](const char* key) {
    const auto bytes = json.at(key).get<uint64_t>();
    return fmt::format("{} ({} bytes)", format_size(bytes), bytes);
  };
  fmt::print("{:<15} {}\n", "pool", json.at("pool").get<std::string>());
  fmt::print("{:<15} {}\n", "kind", json.at("device").get<bool>() ? "block device" : "file");
  fmt::print("{:<15} {}\n", "size", size("size"));
  fmt::print("{:<15} {}, {:.1f}%\n", "used", size("used_bytes"),
             json.at("used_percent").get<double>());
  fmt::print("{:<15} {}\n", "free", size("free_bytes"));
  if (!json.at("problem").is_null()) {
    fmt::print("{:<15} {}\n", "problem", json.at("problem").get<std::string>());
  }
}

void grow(const std::string& path, std::optional<uint64_t> bytes) {
  if (const std::optional<MountEntry> mount = cowfs_mount_at(path)) {
    const nlohmann::json facts = mount_facts(*mount);
    if (facts.value("pool", nlohmann::json()).is_null()) refuse_without_pool(path, facts["policy"]);
    nlohmann::json answer;
    try {
      answer = ask_server(
          mount->point,
          {{"ask", "grow_pool"}, {"bytes", bytes ? nlohmann::json(*bytes) : nlohmann::json()}});
    } catch (const Error& error) {
      if (error.code() != EPERM) throw;
      throw Error::with_message(
          EPERM, path + ": only root and the user that mounted it may enlarge its pool");
    }
    if (answer.contains("error")) {
      throw Error::with_message(answer.at("code"), answer.at("error").get<std::string>());
    }
    return;
  }
  require_store(path);
  const std::unique_ptr<Store> store = open_store(path, "pool", Needs::names);
  if (store->pool() == nullptr) refuse_without_pool(path, store->facts().policy);
  // A device that has grown was taken over when the store was opened.
  if (bytes || !store->pool_has_grown()) store->pool()->grow(bytes);
  close_store(*store);
}

void restore_header(const std::string& path, bool force, bool as_json) {
  if (cowfs_mount_at(path)) {
    throw Error::with_message(
        EBUSY, path + ": is mounted; the header is written anew of a store that is not");
  }
  require_store(path);
  const std::string store = absolute_path(path);
  const RestoredHeader header =
      pointing_to_check(store, [&] { return restore_pool_header(store, force); });
  const bool written = !header.found.empty();
  if (as_json) {
    print_json({{"pool", header.pool},
                {"written", written},
                {"found", written ? Json(header.found) : Json()},
                {"saved", header.saved.empty() ? Json() : Json(header.saved)}});
    return;
  }
  if (!written) {
    fmt::print("pool {}: has its header; nothing was written\n", header.pool);
    return;
  }
  fmt::print("pool {}: began with {}; its header is written anew\n", header.pool, header.found);
  if (!header.saved.empty()) fmt::print("what was there is saved as {}\n", header.saved);
}

}  // namespace

int run_pool(const Arguments& arguments) {
  std::string what;
  std::string path;
  std::string size;
  bool as_json = false;
  bool force = false;
  CommandLine line(kPoolHelp);
  line.argument(
      "ACTION", what,
      "info: tell of it; grow: make it larger; restore-header: write its first 4 KiB anew");
  line.argument("MOUNT|STORE", path, "a mount point, or the directory of a store");
  line.argument("SIZE", size, "of a pool in a file: bytes, or with K, M, G, T",
                CommandLine::Needed::no);
  line.flag("--json", as_json, "print JSON; cowfs-pool(1) has the keys");
  line.flag("--force", force,
            "restore-header: also where more was written over, or nothing seems to be there");
  if (!line.parse(arguments)) return kDone;
  if (force && what != "restore-header") throw UsageError("--force goes with restore-header");
  if (what == "info") {
    if (!size.empty()) throw UsageError("pool info takes no SIZE");
  } else if (what == "grow") {
    grow(path, size.empty() ? std::nullopt : std::optional(parse_size(size)));
  } else if (what == "restore-header") {
    if (!size.empty()) throw UsageError("pool restore-header takes no SIZE");
    restore_header(path, force, as_json);
    return kDone;
  } else {
    throw UsageError("'" + what + "': there is info, grow and restore-header");
  }
  if (what == "grow" && !as_json) return kDone;
  const Json facts = facts_of_pool(path);
  if (as_json) {
    print_json(facts);
  } else {
    print_pool(facts);
  }
  return facts.at("problem").is_null() ? kDone : kFailed;
}

}  // namespace cowfs
