#include "store/layout.h"

#include <cerrno>
#include <charconv>
#include <filesystem>

#include "store/error.h"

namespace cowfs {

std::string catalog_path(const std::string& directory) { return directory + "/catalog.db"; }
std::string layers_path(const std::string& directory) { return directory + "/layers"; }

std::string layer_file_name(uint64_t layer, std::string_view suffix) {
  return std::to_string(layer) + std::string(suffix);
}

std::optional<uint64_t> layer_of_file(const std::string& name, std::string_view suffix) {
  if (suffix.empty() || !name.ends_with(suffix)) return std::nullopt;
  uint64_t id = 0;
  const char* end = name.data() + name.size() - suffix.size();
  const auto [stop, error] = std::from_chars(name.data(), end, id);
  if (error != std::errc() || stop != end || layer_file_name(id, suffix) != name) {
    return std::nullopt;
  }
  return id;
}

LayersOnDisk layers_on_disk(const std::string& directory, std::string_view suffix) {
  LayersOnDisk layers;
  if (suffix.empty()) return layers;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(layers_path(directory), error), end;
       !error && entry != end; entry.increment(error)) {
    const std::optional<uint64_t> id = layer_of_file(entry->path().filename(), suffix);
    if (!id) continue;
    if (entry->symlink_status(error).type() != std::filesystem::file_type::regular) {
      layers.irregular.insert(*id);
    }
    layers.all.insert(*id);
  }
  if (error) throw Error(error.value(), "read " + layers_path(directory));
  return layers;
}

}  // namespace cowfs
