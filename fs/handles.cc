// A file handle is the number of a record and the record's generation, which counts how often it
// was used, so that a handle that was closed is not taken for the one that came after it.
//
// A record counts from the store of its request's number on, and until 0 is stored there: whenever
// this process is killed, a handle is open or it is not.

#include "fs/handles.h"

#include <utility>

#include "store/error.h"

namespace cowfs {
namespace {

uint64_t handle_of(uint32_t index, uint32_t generation) {
  return uint64_t{generation} << 32U | index;
}

}  // namespace

Handles::Handles(std::shared_ptr<LiveMemory> memory) : memory_(std::move(memory)) {
  const uint32_t used = memory_->segments(LiveMemory::Region::handles);
  for (uint32_t i = 0; i < used; ++i) {
    use_segment(memory_->map_segment(LiveMemory::Region::handles, i));
  }
}

void Handles::use_segment(void* memory) {
  auto* const records = static_cast<Record*>(memory);
  const auto first = static_cast<uint32_t>(segments_.size()) * per_segment();
  segments_.push_back(records);
  free_.reserve(free_.size() + per_segment());
  for (uint32_t i = per_segment(); i-- > 0;) {
    Record& record = records[i];
    const uint64_t request = record.request.load(std::memory_order_acquire);
    if (request == 0) {
      free_.push_back(first + i);
      continue;
    }
    found_.emplace(request, handle_of(first + i, record.generation.load()));
    Count& count = counts_[record.image.load()];
    ++count.openers;
    if (record.writes.load() != 0) ++count.writers;
  }
}

uint64_t Handles::add(uint64_t request, const Open& open) {
  const std::lock_guard lock(mutex_);
  Count& count = counts_[open.image];
  if (free_.empty()) use_segment(memory_->add_segment(LiveMemory::Region::handles));
  const uint32_t index = free_.back();
  free_.pop_back();
  ++count.openers;
  if (open.writes) ++count.writers;
  Record& record = this->record(index);
  const uint32_t generation = record.generation.load() + 1;
  record.generation.store(generation);
  record.image.store(open.image);
  record.writes.store(open.writes ? 1 : 0);
  record.request.store(request, std::memory_order_release);
  return handle_of(index, generation);
}

std::optional<uint64_t> Handles::find(uint64_t request) {
  const std::lock_guard lock(mutex_);
  const auto found = found_.find(request);
  return found == found_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<Handles::Open> Handles::remove(uint64_t handle) {
  const auto index = static_cast<uint32_t>(handle);
  const std::lock_guard lock(mutex_);
  if (index / per_segment() >= segments_.size()) return std::nullopt;
  Record& record = this->record(index);
  const uint64_t request = record.request.load();
  if (request == 0 || record.generation.load() != handle >> 32U) return std::nullopt;
  const Open open{.image = record.image.load(), .writes = record.writes.load() != 0};
  free_.reserve(free_.size() + 1);
  record.request.store(0, std::memory_order_release);
  found_.erase(request);
  free_.push_back(index);
  const auto count = counts_.find(open.image);
  --count->second.openers;
  if (open.writes) --count->second.writers;
  if (count->second.openers == 0) counts_.erase(count);
  return open;
}

Handles::Count Handles::count(uint64_t image) {
  const std::lock_guard lock(mutex_);
  const auto found = counts_.find(image);
  return found == counts_.end() ? Count{} : found->second;
}

std::vector<Handles::Open> Handles::all() {
  const std::lock_guard lock(mutex_);
  std::vector<Open> open;
  for (uint32_t i = 0; i < segments_.size() * per_segment(); ++i) {
    const Record& record = this->record(i);
    if (record.request.load() == 0) continue;
    open.push_back({.image = record.image.load(), .writes = record.writes.load() != 0});
  }
  return open;
}

}  // namespace cowfs
