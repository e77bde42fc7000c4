// What can be said of a store, of one that is not open for writing too.

#include <filesystem>

#include "store/layout.h"
#include "store/store.h"

namespace cowfs {

namespace fs = std::filesystem;

StoreFacts facts_of(const std::string& directory, Catalog& catalog) {
  const StoreRow store = catalog.store();
  const BaseRow base = catalog.base();
  return {.directory = directory,
          .uuid = store.uuid,
          .base_path = base.path,
          .base_size = base.size,
          .chunk_size = store.chunk_size,
          .policy = store.policy,
          .format_version = catalog.format_version()};
}

StoreSummary summarize_store(const std::string& directory) {
  if (!fs::is_directory(directory)) throw Error(ENOTDIR, "store " + directory);
  const StoreLook look(directory);
  if (look.holder() && writing_mode(directory) == Database::Mode::read_write_alone) {
    return {
        .facts = {}, .base_written_ns = {}, .images = {}, .failures = {}, .holder = look.holder()};
  }
  Catalog catalog(catalog_path(directory),
                  look.holder() ? Database::Mode::read_only : Database::Mode::at_rest);
  std::map<uint64_t, std::string> failures;
  for (const LayerRow& layer : catalog.layers()) {
    if (layer.failure) failures.emplace(layer.id, *layer.failure);
  }
  return {.facts = facts_of(directory, catalog),
          .base_written_ns = catalog.base().written_ns,
          .images = catalog.images(),
          .failures = std::move(failures),
          .holder = look.holder()};
}

std::optional<std::string> cow_file(const std::string& directory, uint64_t layer) {
  std::string path = layers_path(directory) + "/" + std::to_string(layer) + ".cow";
  if (!fs::exists(path)) return std::nullopt;
  return path;
}

}  // namespace cowfs
