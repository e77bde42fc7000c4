// What can be said of a store, of one that is not open for writing too.

#include <filesystem>

#include "store/layout.h"
#include "store/store.h"

namespace cowfs {

namespace fs = std::filesystem;

void set_base_facts(StoreFacts& facts, const BaseRow& base) {
  facts.base_path = base.path;
  facts.base_format = base.format;
  facts.base_snapshot = base.snapshot;
  facts.base_size = base.virtual_size;
  facts.backing.clear();
  for (const BaseFileRow& file : base.backing) facts.backing.push_back({file.path, file.format});
}

StoreFacts facts_of(const std::string& directory, Catalog& catalog) {
  const StoreRow store = catalog.store();
  StoreFacts facts;
  facts.directory = directory;
  facts.uuid = store.uuid;
  facts.chunk_size = store.chunk_size;
  facts.policy = store.policy;
  facts.format_version = catalog.format_version();
  set_base_facts(facts, catalog.base());
  return facts;
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
