// What an image takes over from a process that was killed (I2)
//
// Its size, times and parent limit lie in a LiveImage, and the pages of its map that the catalog
// may not have lie in the arena. They go before what the catalog says, and are committed as if this
// process had made them. Each is changed by one store, in an order in which every moment makes
// sense to a reader, and so to a successor. Where that is not enough:
//
//   - a shrink is committed before it is done in memory: `cutting` tells
//   - chunks behind the size belong to writes that were not answered; they are cut off
//   - of an image that has failed (I8) only what the catalog has counts

#include <spdlog/logger.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "store/error.h"
#include "store/image.h"

namespace cowfs {
namespace {

/// Makes of what a process before this one left what it would have come to.
void settle(LiveImage& live, const ImageRow& row, uint64_t limit) {
  if (live.failed.load() != 0) {
    // Only what the catalog has counts.
    live.size = row.size;
    live.parent_limit = limit;
  } else if (live.cutting.load() == row.size + 1) {
    // The catalog knows of the shrink already, and has forgotten what lay behind.
    live.size = row.size;
    live.parent_limit = std::min(live.parent_limit.load(), row.size);
  }
  live.cutting = 0;
}

}  // namespace

LiveImage& Image::live_record(LiveImages& images, const ImageRow& row, uint64_t limit) {
  if (LiveImage* const left = images.find(row.id); left != nullptr) {
    settle(*left, row, limit);
    return *left;
  }
  LiveImage& live = images.allocate();
  live.size = row.size;
  live.parent_limit = limit;
  live.atime_ns = row.atime_ns;
  live.mtime_ns = row.mtime_ns;
  live.ctime_ns = row.ctime_ns;
  LiveImages::publish(live, row.id);
  return live;
}

void Image::inherit() {
  if (failed()) {
    if (!failure()) fail("an earlier sync of it failed");
    layer_->disinherit();
    return;
  }
  std::string nonsense;
  if (size() > kMaxImageSize || layer_->parent_limit() > size()) {
    nonsense = "its size in memory is not what a server leaves";
    layer_->disinherit();
  } else if (layer_->inherits() || reshaped()) {
    auto usage = usage_.lock();
    try {
      activate(*usage);
      // By writes that were not answered, and come again.
      layer_->cut(size());
      return;
    } catch (const Error& error) {
      if (error.code() != EUCLEAN) throw;
      nonsense = error.what();
      layer_->deactivate();
    }
  }
  if (nonsense.empty()) return;
  live_.size = committed_size_.load();
  live_.parent_limit = committed_limit_.load();
  fail(nonsense);
}

}  // namespace cowfs
