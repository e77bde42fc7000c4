#include "cmd/facts.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <nlohmann/json.hpp>

#include "cmd/sizes.h"
#include "cmd/table.h"
#include "fs/control.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

int64_t nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

/// From the server, where st_blocks may be a second old; none where the caller may not read it.
std::optional<uint64_t> own_bytes(const std::string& path) {
  std::array<char, 32> text{};
  const ssize_t length =
      ::lgetxattr(path.c_str(), "user.cowfs.own_bytes", text.data(), text.size());
  uint64_t bytes = 0;
  if (length <= 0 || std::from_chars(text.data(), text.data() + length, bytes).ec != std::errc()) {
    return std::nullopt;
  }
  return bytes;
}

/// What is asked of the server. Part of it is for who may read the image.
void ask_more(const MountEntry& mount, const std::string& path, ImageFacts& facts) {
  const nlohmann::json answer = ask_about_image(mount, facts.name);
  if (answer.at("space_limit").is_number()) facts.space_limit = answer["space_limit"];
  facts.parked = answer.at("parked");
  if (answer.at("failure").is_string()) facts.failure = answer["failure"].get<std::string>();
  if (::faccessat(AT_FDCWD, path.c_str(), R_OK, AT_EACCESS) != 0) return;
  facts.created_ns = answer.at("created_ns").get<int64_t>();
  if (answer.at("cow_file").is_string()) facts.cow_file = answer["cow_file"].get<std::string>();
}

Json to_json(const User& user) {
  if (user.kind == User::Kind::loop) return {{"kind", "loop"}, {"device", user.device}};
  return {{"kind", "process"}, {"pid", user.pid}, {"command", user.command}};
}

}  // namespace

ImageFacts image_facts(const MountEntry& mount, const std::string& name, const Users& users) {
  const std::string path = mount.point + "/" + name;
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) throw Error{errno, path};
  ImageFacts facts{
      .name = name,
      .size = static_cast<uint64_t>(status.st_size),
      .own_bytes = own_bytes(path).value_or(static_cast<uint64_t>(status.st_blocks) * 512),
      .inode = status.st_ino,
      .mode = status.st_mode & 07777U,
      .uid = status.st_uid,
      .gid = status.st_gid,
      .modified_ns = nanoseconds(status.st_mtim),
      .changed_ns = nanoseconds(status.st_ctim),
      .created_ns = {},
      .cow_file = {},
      .failure = {},
      .space_limit = {},
      .users = {}};
  const auto [first, last] = users.equal_range(facts.inode);
  for (auto at = first; at != last; ++at) facts.users.push_back(at->second);
  ask_more(mount, path, facts);
  return facts;
}

ImageFacts image_facts(const StoreSummary& store, const ImageRow& row) {
  ImageFacts facts{.name = row.name.value_or(""),
                   .size = row.size,
                   .own_bytes = 0,
                   .inode = row.id,
                   .mode = row.mode,
                   .uid = row.uid,
                   .gid = row.gid,
                   .modified_ns = row.mtime_ns,
                   .changed_ns = row.ctime_ns,
                   .created_ns = row.btime_ns,
                   .cow_file = cow_file(store.facts.directory, row.layer),
                   .failure = {},
                   .space_limit = row.space_limit,
                   .users = {}};
  if (const auto failure = store.failures.find(row.layer); failure != store.failures.end()) {
    facts.failure = failure->second;
  }
  if (const auto pooled = store.pool_bytes.find(row.layer); pooled != store.pool_bytes.end()) {
    facts.own_bytes = pooled->second;
  }
  struct stat status {};
  if (facts.cow_file && ::stat(facts.cow_file->c_str(), &status) == 0) {
    facts.own_bytes = static_cast<uint64_t>(status.st_blocks) * 512;
  }
  return facts;
}

std::vector<ImageRow> named_images(const StoreSummary& summary) {
  std::vector<ImageRow> rows;
  std::copy_if(summary.images.begin(), summary.images.end(), std::back_inserter(rows),
               [](const ImageRow& row) { return row.name.has_value(); });
  std::sort(rows.begin(), rows.end(), [](const ImageRow& left, const ImageRow& right) {
    return name_before(*left.name, *right.name);
  });
  return rows;
}

std::vector<ImageRow> named_images(const StoreSummary& summary, const Arguments& names) {
  std::vector<ImageRow> rows;
  for (const std::string& name : names) {
    check_name(name);
    const auto row = std::find_if(summary.images.begin(), summary.images.end(),
                                  [&](const ImageRow& each) { return each.name == name; });
    if (row == summary.images.end()) throw Error(ENOENT, "image " + name);
    rows.push_back(*row);
  }
  return rows;
}

Json to_json(const ImageFacts& facts) {
  Json users = Json::array();
  for (const User& user : facts.users) users.push_back(to_json(user));
  return {{"name", facts.name},
          {"size", facts.size},
          {"own_bytes", facts.own_bytes},
          {"private_percent", private_percent(facts.own_bytes, facts.size)},
          {"inode", facts.inode},
          {"mode", fmt::format("{:04o}", facts.mode)},
          {"uid", facts.uid},
          {"gid", facts.gid},
          {"modified", format_time_exact(facts.modified_ns)},
          {"changed", format_time_exact(facts.changed_ns)},
          {"created", facts.created_ns ? Json(format_time_exact(*facts.created_ns)) : Json()},
          {"failure", facts.failure ? Json(*facts.failure) : Json()},
          {"users", users}};
}

nlohmann::json ask_about_image(const MountEntry& mount, const std::string& name,
                               nlohmann::json question) {
  question["image"] = name;
  return ask_server(mount.point, question);
}

nlohmann::json ask_about_image(const MountEntry& mount, const std::string& name) {
  return ask_about_image(mount, name, {{"ask", "info"}});
}

nlohmann::json pool_json(const StoreSummary& summary) {
  if (!summary.pool) return nullptr;
  return {{"path", summary.pool->path},
          {"device", summary.pool->is_device},
          {"size", summary.pool->size},
          {"free_bytes", summary.pool->free}};
}

nlohmann::json mount_facts(const MountEntry& mount) {
  require_alive(mount);
  return ask_server(mount.point);
}

void print_json(const Json& json) {
  fmt::print("{}\n", json.dump(2, ' ', true, Json::error_handler_t::replace));
}

}  // namespace cowfs
