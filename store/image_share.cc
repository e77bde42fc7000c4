// Sharing chunks with the base
//
// A chunk that does not show the base (it was trimmed, or the image was born empty or was shrunk)
// can come to share it again in two ways: copy_file_range(2) from an image that shares it, and a
// write of just what the base has there. The latter is what cp(1), tar(1) and dd(1) do when they
// copy an image, or the base, by reading and writing: without it each copy would cost all of the
// base. Only whole chunks are compared, and only those that hide the base. Who copies an image has
// just read the base, which is then in the host's page cache, mostly, or in ours of decompressed
// clusters. What is not there is fetched
// on credit: a chunk that proves equal restores it, one that was fetched in vain uses it up. So a
// copy stays shared also when memory is short, and a guest that fills what it had trimmed with
// other data soon waits for nothing.
//
// An image shows the base up to its parent limit only (I12). To share a chunk beyond it, the limit
// is raised, and what would come to light between the old limit and the chunk is hidden first.

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "store/image.h"

namespace cowfs {

// Makes [offset, offset + length) absent, so that it reads as the base up to `source_limit` and as
// zeros beyond. The end is on a chunk border, or the end of the image is not behind it.
Image::Shared Image::share_with_base(uint64_t source_limit, uint64_t offset, uint64_t length) {
  const ChunkSize chunk = context_.chunk;
  const uint64_t end = offset + length;
  const Shared impossible{false, length, std::nullopt};
  const uint64_t old_limit = layer_->parent_limit();

  // Where this image shows the base, it must not show more of it than asked for.
  if (old_limit > source_limit && end > source_limit) return impossible;

  zero_tail(size());
  const uint64_t first = std::min(chunk.down(old_limit), offset);
  const ChunkRange range{chunk.chunk_of(first), chunk.chunk_of(chunk.up(end))};
  const RangeLock::Guard guard = chunks_.try_lock(range);
  // Another sharing may have raised the limit: then all is to be looked at again.
  if (!guard || layer_->parent_limit() != old_limit) return {false, length, range};
  check_not_failed();
  if (!chunk.aligned(end)) {
    // The rest of the last chunk is not ours: somebody may be writing there, in place if it is
    // present, and wait for us if it is not.
    const bool taken = layer_->find(chunk.down(end), 1).state == ChunkState::present;
    if (size() > end || taken) return impossible;
  }
  const uint64_t new_limit = std::max(old_limit, std::min(source_limit, end));

  const bool ends_in_chunk = !chunk.aligned(new_limit) && new_limit < context_.base->size();
  if (layer_->shows_whole_chunks() && ends_in_chunk) return impossible;

  if (new_limit > old_limit && old_limit < offset) {
    // A chunk that is half shown would be shown whole: it gets its bytes for its own.
    if (!chunk.aligned(old_limit)) {
      const uint64_t start = chunk.down(old_limit);
      const Run run = layer_->find(start, chunk.bytes());
      if (run.state == ChunkState::absent) {
        std::vector<std::byte> bytes(static_cast<size_t>(chunk.bytes()));
        read_parent(bytes, start);
        write_new(bytes, start);
      }
    }
  }
  // A commit has all of this or nothing: one half would be zeros, or base content, that nobody
  // wrote (I4). For readers what is to stay hidden is hidden before the limit rises, and what is
  // to be shared has the limit above it before it becomes absent.
  const std::lock_guard shape_lock(shape_mutex_);
  if (new_limit > old_limit) {
    for (uint64_t at = chunk.up(old_limit); at < offset;) {
      const Run run = layer_->find(at, offset - at);
      if (run.state == ChunkState::absent) layer_->take_away(at, run.length, ChunkState::zero);
      at += run.length;
    }
  }
  raise_size(end);
  // Only who raises it may set it: others hold no chunk that keeps one from raising it further.
  if (new_limit > old_limit) layer_->set_parent_limit(new_limit);
  layer_->take_away(offset, chunk.up(end) - offset, ChunkState::absent);
  return {true, length, std::nullopt};
}

// Whether `data`, one chunk or what the base has of its last one, is what the base holds there.
// False also where the base cannot be read: the write does not need it.
bool Image::same_as_base(std::span<const std::byte> data, uint64_t offset) {
  constexpr size_t kPiece = 16 << 10;
  std::array<std::byte, kPiece> piece;
  const Base& base = *context_.base;
  try {
    while (!data.empty()) {
      const std::span<std::byte> held(piece.data(), std::min(kPiece, data.size()));
      bool fetched = false;
      if (base.read_cached(held, offset) < held.size()) {
        if (share_credit_.load() < static_cast<int64_t>(held.size())) return false;
        base.read(held, offset);
        fetched = true;
      }
      if (std::memcmp(held.data(), data.data(), held.size()) != 0) {
        if (fetched) share_credit_ -= static_cast<int64_t>(held.size());
        return false;
      }
      data = data.subspan(held.size());
      offset += held.size();
    }
  } catch (const Error&) {
    return false;
  }
  share_credit_ = kShareCredit;
  return true;
}

// Bytes at the front of `data` that are now shared with the base, or else must be written: see
// Shared. `run` is what the layer says of them, and `limit` was the parent limit before it did.
Image::Shared Image::share_written(const Run& run, uint64_t limit, std::span<const std::byte> data,
                                   uint64_t offset) {
  const ChunkSize chunk = context_.chunk;
  const uint64_t base_size = context_.base->size();
  if (offset >= base_size || !chunk.aligned(offset)) return {false, data.size(), std::nullopt};
  if (run.state == ChunkState::absent && offset < limit) {
    return {false, std::min<uint64_t>(data.size(), chunk.up(limit) - offset), std::nullopt};
  }

  uint64_t length = 0;
  bool same = false;
  while (length < data.size()) {
    const uint64_t at = offset + length;
    const uint64_t step = std::min({chunk.bytes(), data.size() - length, base_size - at});
    // A part of a chunk will do only where the base ends, and the image with it.
    const bool comparable =
        step == chunk.bytes() ||
        (step > 0 && at + step == base_size && size() <= base_size && length + step == data.size());
    const bool now =
        comparable &&
        same_as_base(data.subspan(static_cast<size_t>(length), static_cast<size_t>(step)), at);
    if (length > 0 && now != same) break;
    same = now;
    length = comparable ? length + step : data.size();
  }
  if (!same) return {false, length, std::nullopt};
  return share_with_base(base_size, offset, length);
}

}  // namespace cowfs
