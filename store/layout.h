#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

namespace cowfs {

// Where things lie in a store's directory; see cowfs-format(5).

std::string catalog_path(const std::string& directory);
std::string layers_path(const std::string& directory);

/// The number in the file name `<id>.cow`.
std::optional<uint64_t> layer_of_file(const std::string& name);

/// The layers that have a CoW file in the store; EUCLEAN if one is no regular file.
std::set<uint64_t> layers_on_disk(const std::string& directory);

}  // namespace cowfs
