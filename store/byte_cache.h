#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace cowfs {

/// Bytes that are costly to come by (tables, decompressed clusters), the least recently used of
/// which are let go of when they become too many. Thread-safe; who asks for what another is just
/// making waits for that one. No lock is held while something is made.
class ByteCache {
 public:
  using Bytes = std::vector<std::byte>;
  using Entry = std::shared_ptr<const Bytes>;
  struct Key {
    const void* owner;  ///< tells the numbers of different owners apart
    uint64_t number;
    bool operator==(const Key&) const = default;
  };

  /// `bytes`: about how much it holds at most, besides what is in use.
  explicit ByteCache(size_t bytes) : shard_bytes_(bytes / kShards) {}

  /// Null if it is not there, or not yet.
  [[nodiscard]] Entry find(const Key& key);
  /// Makes it if it is not there. What `make` throws goes to its caller; others try for themselves.
  [[nodiscard]] Entry get(const Key& key, const std::function<Bytes()>& make);

 private:
  static constexpr size_t kShards = 16;
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  struct Slot {
    Entry entry;  // null while it is made
    std::list<Key>::iterator place;
  };
  struct Shard {
    std::mutex mutex;
    std::condition_variable changed;
    std::unordered_map<Key, Slot, Hash> slots;
    std::list<Key> by_use;  // the most recently used first
    size_t bytes = 0;
  };

  Shard& shard_of(const Key& key) { return shards_[(Hash()(key) >> 32U) % kShards]; }
  static Entry use(Shard& shard, Slot& slot);
  void put(Shard& shard, const Key& key, const Entry& entry) const;

  const size_t shard_bytes_;
  std::array<Shard, kShards> shards_;
};

}  // namespace cowfs
