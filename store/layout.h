#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

namespace cowfs {

// Where things lie in a store's directory; see cowfs-format(5).

std::string catalog_path(const std::string& directory);
std::string layers_path(const std::string& directory);

/// The name of a layer's CoW file, `<id>.cow` say, within the directory of the layers; `suffix` is
/// the policy's.
std::string layer_file_name(uint64_t layer, std::string_view suffix);
/// The number in such a name.
std::optional<uint64_t> layer_of_file(const std::string& name, std::string_view suffix);

/// The layers by what has the name of their CoW file.
struct LayersOnDisk {
  std::set<uint64_t> all;
  std::set<uint64_t> irregular;  ///< of them those where that is no regular file, a link say
};
/// None where the policy makes no CoW files, and `suffix` is empty.
LayersOnDisk layers_on_disk(const std::string& directory, std::string_view suffix);

}  // namespace cowfs
