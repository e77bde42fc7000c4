#include "store/layout.h"

#include <cerrno>
#include <charconv>
#include <filesystem>

#include "store/error.h"

namespace cowfs {

std::string catalog_path(const std::string& directory) { return directory + "/catalog.db"; }
std::string layers_path(const std::string& directory) { return directory + "/layers"; }

std::optional<uint64_t> layer_of_file(const std::string& name) {
  if (!name.ends_with(".cow")) return std::nullopt;
  uint64_t id = 0;
  const char* end = name.data() + name.size() - 4;
  const auto [stop, error] = std::from_chars(name.data(), end, id);
  if (error != std::errc() || stop != end || std::to_string(id) + ".cow" != name) {
    return std::nullopt;
  }
  return id;
}

std::set<uint64_t> layers_on_disk(const std::string& directory) {
  std::set<uint64_t> ids;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(layers_path(directory), error), end;
       !error && entry != end; entry.increment(error)) {
    const std::optional<uint64_t> id = layer_of_file(entry->path().filename());
    if (!id) continue;
    if (entry->symlink_status(error).type() != std::filesystem::file_type::regular) {
      throw Error::with_message(EUCLEAN, "store " + directory + ": damaged: " +
                                             entry->path().string() + " is no regular file");
    }
    ids.insert(*id);
  }
  if (error) throw Error(error.value(), "read " + layers_path(directory));
  return ids;
}

}  // namespace cowfs
