#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "store/catalog.h"
#include "store/chunk_size.h"
#include "store/host_fs.h"
#include "store/layer.h"
#include "store/map_arena.h"

namespace cowfs {

class PoolFile;

/// What a policy may use; it outlives what it opens, and everything in it does.
struct PolicyContext {
  ChunkSize chunk;
  std::string directory;  ///< of the CoW files
  MapArena& arena;
  Catalog& catalog;
  const FaultHook* hook;
  /// The directory itself, to be synced: a sync must not fail for want of a descriptor.
  const File* entries = nullptr;
  /// Of policies that have one: open, and the store's. Null where nothing is read or written.
  const PoolFile* pool = nullptr;
  std::string store;              ///< its UUID
  const BaseRow* base = nullptr;  ///< null where nothing is read
  /// Closes the files of images that nobody uses; whether there were any.
  std::function<bool()> close_idle = [] { return false; };
  bool read_only = false;  ///< only to be looked at
};

class Pool;

/// An allocation policy at work in an open store. Thread-safe.
class StorePolicy {
 public:
  StorePolicy() = default;
  StorePolicy(const StorePolicy&) = delete;
  StorePolicy& operator=(const StorePolicy&) = delete;
  virtual ~StorePolicy() = default;

  /// A layer, not active yet.
  [[nodiscard]] virtual std::unique_ptr<Layer> layer(const LayerRow& row) = 0;
  /// Of an image.
  [[nodiscard]] virtual uint64_t largest_size() const { return kMaxImageSize; }
  /// Of a layer that nobody uses, as the catalog has it: makes what it needs outside the catalog,
  /// if its row does not say yet that it is there, and takes over what others have done to that.
  /// Returns whether the rows are to be changed in the catalog, after the image was flushed.
  virtual bool adopt(ImageRow& /*image*/, LayerRow& /*layer*/) { return false; }
  /// Of a policy with the map in the layer's file: looks through that of a layer in a store that is
  /// not open, and changes nothing. Returns what the next opening makes good; throws EUCLEAN, or
  /// EOPNOTSUPP, for what it does not.
  [[nodiscard]] virtual std::vector<std::string> inspect(const LayerRow& /*row*/) { return {}; }
  /// Part of the transaction that forgets a layer, before its rows go: takes what else the catalog
  /// has of it. Layer::remove_files follows once that is durable.
  virtual void forget(Catalog::Change& /*change*/, uint64_t /*layer*/) {}
  /// Where chunks come from, if that is not the file system that the store lies on.
  [[nodiscard]] virtual std::optional<Space> space() { return std::nullopt; }
  /// The pool, of a policy that has one.
  [[nodiscard]] virtual Pool* pool() { return nullptr; }
};

/// An allocation policy: where a written chunk lives. A new one is a file pair that implements
/// Layer and StorePolicy, and a line in policies(); cowfs-policy(7) leads through one.
struct Policy {
  std::string_view name;
  uint32_t default_chunk_size;  ///< bytes
  /// What a map page in the catalog has for each chunk: ChunkMap::kBits or SlotMap::kBits.
  unsigned map_bits;
  /// The ending of the CoW file that each layer has of its own, `layers/<id>.cow`; empty: none has.
  std::string_view file_suffix;
  /// Whether such a file has the layer's map too, so that the catalog has none.
  bool map_in_file;
  /// Whether all layers share a pool.
  bool has_pool;
  std::unique_ptr<StorePolicy> (*open)(const PolicyContext& context);
  /// EINVAL, saying why, for a base that its layers cannot have; null: they can have any.
  void (*require_base)(const BaseRow& base) = nullptr;
};

std::span<const Policy> policies();

/// EINVAL, with the names that there are, if none of `among` has this one.
const Policy& find_policy(std::string_view name, std::span<const Policy> among = policies());

}  // namespace cowfs
