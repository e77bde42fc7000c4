#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cmd/command.h"
#include "cmd/target.h"
#include "fs/users.h"

namespace cowfs {

/// Keys in the order in which they are put in.
using Json = nlohmann::ordered_json;

/// What `ls` and `info` tell of an image.
struct ImageFacts {
  std::string name;
  uint64_t size = 0;
  uint64_t own_bytes = 0;
  uint64_t inode = 0;
  uint32_t mode = 0;  ///< permission bits
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t modified_ns = 0;
  int64_t changed_ns = 0;
  std::optional<int64_t> created_ns;    ///< none where the caller may not read the image
  std::optional<std::string> cow_file;  ///< likewise, and none before the first write
  std::optional<std::string> failure;   ///< why it takes no writes (I8), as far as is known
  std::optional<uint64_t> space_limit;  ///< bytes; none: no limit, or not known
  uint64_t parked = 0;                  ///< requests that wait for space
  std::vector<User> users;
};

/// ENOENT if it is not there (any more). `users` are those of the mount.
ImageFacts image_facts(const MountEntry& mount, const std::string& name, const Users& users);
/// Of an image with a name.
ImageFacts image_facts(const StoreSummary& store, const ImageRow& row);
/// The rows that have a name, in the order of listings.
std::vector<ImageRow> named_images(const StoreSummary& summary);
/// The rows of these names, in their order. ENOENT if there is no such image.
std::vector<ImageRow> named_images(const StoreSummary& summary, const Arguments& names);

/// The keys that `ls` and `info` have in common.
Json to_json(const ImageFacts& facts);

/// What the server of the mount answers about an image; see fs/control.h. Opens no image.
nlohmann::json ask_about_image(const MountEntry& mount, const std::string& name,
                               nlohmann::json question);
/// Asks for the facts.
nlohmann::json ask_about_image(const MountEntry& mount, const std::string& name);

/// Of the pool of a store, as the server of a mount has it (fs/control.h); null if it has none.
nlohmann::json pool_json(const StoreSummary& summary);

/// Of a mount, by its server; see fs/control.h.
nlohmann::json mount_facts(const MountEntry& mount);

/// Prints with a newline, in ASCII (what is not is escaped as \\uXXXX); text that is no UTF-8 is
/// replaced.
void print_json(const Json& json);

}  // namespace cowfs
