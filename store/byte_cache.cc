#include "store/byte_cache.h"

#include <utility>

namespace cowfs {

size_t ByteCache::Hash::operator()(const Key& key) const {
  uint64_t mixed = key.number + reinterpret_cast<uintptr_t>(key.owner);
  mixed = (mixed ^ mixed >> 9U) * 0x9e3779b97f4a7c15U;  // neighbours to different shards
  return mixed ^ mixed >> 29U;
}

ByteCache::Entry ByteCache::use(Shard& shard, Slot& slot) {
  shard.by_use.splice(shard.by_use.begin(), shard.by_use, slot.place);
  return slot.entry;
}

ByteCache::Entry ByteCache::find(const Key& key) {
  Shard& shard = shard_of(key);
  const std::lock_guard lock(shard.mutex);
  const auto found = shard.slots.find(key);
  if (found == shard.slots.end() || found->second.entry == nullptr) return nullptr;
  return use(shard, found->second);
}

ByteCache::Entry ByteCache::get(const Key& key, const std::function<Bytes()>& make) {
  Shard& shard = shard_of(key);
  {
    std::unique_lock lock(shard.mutex);
    while (true) {
      const auto found = shard.slots.find(key);
      if (found == shard.slots.end()) break;
      if (found->second.entry != nullptr) return use(shard, found->second);
      shard.changed.wait(lock);
    }
    shard.slots.emplace(key, Slot{});
  }
  try {
    auto made = std::make_shared<const Bytes>(make());
    const std::lock_guard lock(shard.mutex);
    put(shard, key, made);
    shard.changed.notify_all();
    return made;
  } catch (...) {
    const std::lock_guard lock(shard.mutex);
    shard.slots.erase(key);
    shard.changed.notify_all();
    throw;
  }
}

void ByteCache::put(Shard& shard, const Key& key, const Entry& entry) const {
  shard.by_use.push_front(key);
  Slot& slot = shard.slots.at(key);
  slot.place = shard.by_use.begin();
  slot.entry = entry;
  shard.bytes += entry->size();
  while (shard.bytes > shard_bytes_ && shard.by_use.size() > 1) {
    const auto last = shard.slots.find(shard.by_use.back());
    shard.bytes -= last->second.entry->size();
    shard.slots.erase(last);
    shard.by_use.pop_back();
  }
}

}  // namespace cowfs
