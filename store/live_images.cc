#include "store/live_images.h"

#include <utility>

namespace cowfs {

LiveImages::LiveImages(std::shared_ptr<LiveMemory> memory) : memory_(std::move(memory)) {
  const uint32_t used = memory_->segments(LiveMemory::Region::images);
  for (uint32_t i = 0; i < used; ++i) {
    use_segment(memory_->map_segment(LiveMemory::Region::images, i));
  }
}

void LiveImages::use_segment(void* memory) {
  auto* const images = static_cast<LiveImage*>(memory);
  const size_t count = LiveMemory::segment_bytes(LiveMemory::Region::images) / sizeof(LiveImage);
  free_.reserve(free_.size() + count);
  for (size_t i = count; i-- > 0;) {
    const uint64_t id = images[i].id.load(std::memory_order_acquire);
    if (id == 0 || !found_.emplace(id, &images[i]).second) free_.push_back(&images[i]);
  }
}

LiveImage* LiveImages::find(uint64_t id) {
  const std::lock_guard lock(mutex_);
  const auto found = found_.find(id);
  if (found == found_.end()) return nullptr;
  LiveImage* const image = found->second;
  found_.erase(found);
  return image;
}

LiveImage& LiveImages::allocate() {
  LiveImage* image = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) use_segment(memory_->add_segment(LiveMemory::Region::images));
    image = free_.back();
    free_.pop_back();
  }
  image->id.store(0);
  image->size.store(0);
  image->parent_limit.store(0);
  image->cutting.store(0);
  image->atime_ns.store(0);
  image->mtime_ns.store(0);
  image->ctime_ns.store(0);
  image->failed.store(0);
  return *image;
}

void LiveImages::release(LiveImage& image) {
  image.id.store(0, std::memory_order_release);
  const std::lock_guard lock(mutex_);
  free_.push_back(&image);
}

void LiveImages::release_others() {
  std::unordered_map<uint64_t, LiveImage*> left;
  {
    const std::lock_guard lock(mutex_);
    left.swap(found_);
  }
  for (const auto& [id, image] : left) release(*image);
}

}  // namespace cowfs
