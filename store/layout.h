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

/// The layers that have a CoW file in the store; EUCLEAN if one is no regular file. None where the
/// policy makes none, and `suffix` is empty.
std::set<uint64_t> layers_on_disk(const std::string& directory, std::string_view suffix);

}  // namespace cowfs
