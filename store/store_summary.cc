// What can be said of a store, of one that is not open for writing too.

#include <algorithm>
#include <filesystem>

#include "store/error.h"
#include "store/layout.h"
#include "store/pool_file.h"
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

namespace {

/// See PoolFacts.
std::string problem_of_pool(const std::string& path, const StoreFacts& facts, Catalog& catalog,
                            bool used) {
  try {
    const PoolFile pool(path, PoolFile::Access::read, nullptr);
    const PoolGeneration generation = catalog.pool_generation();
    static_cast<void>(pool.judge(
        {.uuid = facts.uuid, .chunk_size = facts.chunk_size, .generation = generation.now},
        generation.before, used));
    pool.require_room(catalog.pool_slots(), ChunkSize(facts.chunk_size));
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

StoreSummary::PoolFacts pool_facts(const StoreFacts& facts, Catalog& catalog, bool is_open) {
  const ChunkSize chunk(facts.chunk_size);
  uint64_t used = 0;
  catalog.load_used_slots([&used](SlotRun run) { used += run.count; });
  const uint64_t slots = catalog.pool_slots();
  const std::string path = pool_path(facts.directory);
  std::error_code error;
  const fs::path canonical = fs::canonical(path, error);
  const std::string real = error ? path : canonical.string();
  return {.path = real,
          .is_device = fs::is_block_file(path, error),
          .size = chunk.offset_of(slots),
          .free = chunk.offset_of(slots - std::min(used, slots)),
          .problem = is_open ? "" : problem_of_pool(real, facts, catalog, used > 0)};
}

}  // namespace

StoreSummary summarize_store(const std::string& directory) {
  if (!fs::is_directory(directory)) throw Error(ENOTDIR, "store " + directory);
  const StoreLook look(directory);
  if (look.holder() && writing_mode(directory) == Database::Mode::read_write_alone) {
    StoreSummary summary;
    summary.holder = look.holder();
    return summary;
  }
  Catalog catalog(catalog_path(directory),
                  look.holder() ? Database::Mode::read_only : Database::Mode::at_rest);
  StoreFacts facts = facts_of(directory, catalog);
  std::map<uint64_t, std::string> failures;
  std::map<uint64_t, uint64_t> pool_bytes;
  for (const LayerRow& layer : catalog.layers()) {
    if (layer.failure) failures.emplace(layer.id, *layer.failure);
    if (layer.own_chunks > 0) {
      pool_bytes.emplace(layer.id, ChunkSize(facts.chunk_size).offset_of(layer.own_chunks));
    }
  }
  std::optional<StoreSummary::PoolFacts> pool;
  if (find_policy(facts.policy).has_pool)
    pool = pool_facts(facts, catalog, look.holder().has_value());
  return {.facts = std::move(facts),
          .base_written_ns = catalog.base().written_ns,
          .images = catalog.images(),
          .failures = std::move(failures),
          .pool = std::move(pool),
          .pool_bytes = std::move(pool_bytes),
          .holder = look.holder()};
}

std::optional<std::string> cow_file(const std::string& directory, uint64_t layer) {
  for (const Policy& policy : policies()) {
    if (policy.file_suffix.empty()) continue;
    std::string path = layers_path(directory) + "/" + layer_file_name(layer, policy.file_suffix);
    if (fs::exists(path)) return path;
  }
  return std::nullopt;
}

}  // namespace cowfs
