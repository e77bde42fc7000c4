#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "store/catalog.h"
#include "store/chunk_size.h"
#include "store/layer.h"
#include "store/map_arena.h"

namespace cowfs {

/// What a layer may use; it outlives it, and everything in it does.
struct LayerContext {
  ChunkSize chunk;
  std::string directory;  ///< of the CoW files
  MapArena& arena;
  Catalog& catalog;
  const FaultHook* hook;
  /// The directory itself, to be synced: a sync must not fail for want of a descriptor.
  const File* entries = nullptr;
  /// Closes the files of images that nobody uses; whether there were any.
  std::function<bool()> close_idle = [] { return false; };
  bool read_only = false;  ///< only to be looked at
};

/// An allocation policy: where a written chunk lives. A new one is a file pair that implements
/// Layer and a line in policies().
struct Policy {
  std::string_view name;
  uint32_t default_chunk_size;  ///< bytes
  std::unique_ptr<Layer> (*make_layer)(const LayerContext& context, const LayerRow& row);
};

std::span<const Policy> policies();

/// EINVAL, with the names that there are, if none has this one.
const Policy& find_policy(std::string_view name);

}  // namespace cowfs
