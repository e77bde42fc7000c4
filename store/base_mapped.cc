#include "store/base_mapped.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "store/error.h"

namespace cowfs {
namespace {

void fill_with_zeros(std::span<std::byte> buffer) { std::memset(buffer.data(), 0, buffer.size()); }

}  // namespace

MappedContent::MappedContent(Files files, uint64_t size, unsigned cluster_bits)
    : BaseContent(size), files_(std::move(files)), cluster_bits_(cluster_bits) {}

Error MappedContent::broken(const std::string& what) const {
  return Error::with_message(EIO, files_.title + ": damaged: " + what);
}

ByteCache::Entry MappedContent::table(uint64_t place, size_t length, bool wait) const {
  const ByteCache::Key key{this, place};
  if (ByteCache::Entry entry = files_.caches.tables.find(key)) return entry;
  if (!wait) return nullptr;
  if (place > files_.length || length > files_.length - place) {
    throw broken("a table of its map at byte " + std::to_string(place) + " is outside the file");
  }
  return files_.caches.tables.get(key, [&] {
    ByteCache::Bytes bytes(length);
    files_.file.read_exactly(bytes, place);
    return bytes;
  });
}

ByteCache::Entry MappedContent::cluster(uint64_t place) const {
  const ByteCache::Key key{this, place};
  if (ByteCache::Entry entry = files_.caches.clusters.find(key)) return entry;
  return files_.caches.clusters.get(key, [&] { return unpack(place); });
}

std::span<const std::byte> MappedContent::packed_bytes(uint64_t place, size_t length) const {
  thread_local ByteCache::Bytes packed;
  if (place >= files_.length) {
    throw broken("a compressed cluster at byte " + std::to_string(place) + " is outside the file");
  }
  // The last one is not filled up to the sector's end.
  length = static_cast<size_t>(std::min<uint64_t>(length, files_.length - place));
  if (packed.size() < length) packed.resize(length);
  const std::span<std::byte> bytes(packed.data(), length);
  files_.file.read_exactly(bytes, place);
  return bytes;
}

void MappedContent::read_below(std::span<std::byte> buffer, uint64_t offset) const {
  const uint64_t end = backing_ != nullptr ? backing_->size() : 0;
  const auto held =
      static_cast<size_t>(offset < end ? std::min<uint64_t>(buffer.size(), end - offset) : 0);
  if (held > 0) backing_->read(buffer.first(held), offset);
  fill_with_zeros(buffer.subspan(held));
}

void MappedContent::read_plain(std::span<std::byte> buffer, uint64_t offset, uint64_t place) const {
  // The file may end within its last cluster: what is not there was never written. A cluster of
  // which nothing is there is damage.
  const uint64_t last = (offset + buffer.size() - 1) & ~(cluster_size() - 1);
  if (place + last - offset >= files_.length) {
    throw broken("a cluster at byte " + std::to_string(place) + " is outside the file");
  }
  const auto held = static_cast<size_t>(
      place < files_.length ? std::min<uint64_t>(buffer.size(), files_.length - place) : 0);
  if (held > 0) files_.file.read_exactly(buffer.first(held), place);
  fill_with_zeros(buffer.subspan(held));
}

void MappedContent::read(std::span<std::byte> buffer, uint64_t offset) const {
  // Clusters that follow each other in the file are one read, also where their tables are two.
  std::span<std::byte> plain;
  uint64_t plain_offset = 0;
  uint64_t plain_place = 0;
  std::vector<Packed> packed;
  const auto read_collected = [&] {
    if (!plain.empty()) read_plain(plain, plain_offset, plain_place);
    plain = {};
  };
  while (!buffer.empty()) {
    const Extent extent = *find(offset, buffer.size(), true);
    const auto length = static_cast<size_t>(extent.length);
    const std::span<std::byte> piece = buffer.first(length);
    if (extent.home == Home::plain && !plain.empty() &&
        plain_place + plain.size() == extent.place && plain_offset + plain.size() == offset) {
      plain = {plain.data(), plain.size() + length};
    } else {
      read_collected();
      switch (extent.home) {
        case Home::below:
          read_below(piece, offset);
          break;
        case Home::zero:
          fill_with_zeros(piece);
          break;
        case Home::plain:
          plain = piece;
          plain_offset = offset;
          plain_place = extent.place;
          break;
        case Home::packed:
          packed.push_back({extent.place, offset & (cluster_size() - 1), piece});
      }
    }
    buffer = buffer.subspan(length);
    offset += length;
  }
  read_collected();
  read_packed(packed);
}

// Helpers begin at the front and the reader at the back, so that he waits at the end only, for what
// they have begun.
void MappedContent::read_packed(std::span<const Packed> pieces) const {
  for (size_t i = 0; i + 1 < pieces.size(); ++i) {
    const uint64_t place = pieces[i].place;
    if (files_.caches.clusters.find({this, place}) != nullptr) continue;
    files_.caches.helpers.offer([this, place] { static_cast<void>(cluster(place)); });
  }
  for (size_t i = pieces.size(); i-- > 0;) {
    const Packed& piece = pieces[i];
    const ByteCache::Entry whole = cluster(piece.place);
    std::memcpy(piece.to.data(), whole->data() + piece.offset, piece.to.size());
  }
}

size_t MappedContent::read_cached(std::span<std::byte> buffer, uint64_t offset) const {
  size_t done = 0;
  while (done < buffer.size()) {
    const uint64_t at = offset + done;
    const std::optional<Extent> extent = find(at, buffer.size() - done, false);
    if (!extent) break;
    const auto length = static_cast<size_t>(extent->length);
    const std::span<std::byte> piece = buffer.subspan(done, length);
    size_t got = length;
    if (extent->home == Home::zero) {
      fill_with_zeros(piece);
    } else if (extent->home == Home::packed) {
      const ByteCache::Entry whole = files_.caches.clusters.find({this, extent->place});
      if (whole == nullptr) break;
      std::memcpy(piece.data(), whole->data() + (at & (cluster_size() - 1)), length);
    } else if (extent->home == Home::plain) {
      got = files_.file.read_cached(piece, extent->place);
    } else {
      const uint64_t end = backing_ != nullptr ? backing_->size() : 0;
      const auto held = static_cast<size_t>(at < end ? std::min<uint64_t>(length, end - at) : 0);
      if (held > 0) got = backing_->read_cached(piece.first(held), at);
      if (held == 0 || got == held) {
        fill_with_zeros(piece.subspan(held));
        got = length;
      }
    }
    done += got;
    if (got < length) break;
  }
  return done;
}

bool MappedContent::affords(const Extent& extent, Effort& effort) const {
  constexpr uint64_t kMostOfOne = 1U << 13U;  // longer ones were skipped, not looked through
  const uint64_t cost = 1 + std::min(extent.length >> cluster_bits_, kMostOfOne);
  if (effort.left < cost) return false;
  effort.left -= cost;
  return true;
}

std::optional<uint64_t> MappedContent::next_data(uint64_t offset, uint64_t end,
                                                 Effort& effort) const {
  while (offset < end) {
    const Extent extent = *find(offset, end - offset, true);
    if (extent.home == Home::plain || extent.home == Home::packed) return offset;
    if (!affords(extent, effort)) return offset;
    const uint64_t extent_end = offset + extent.length;
    if (extent.home == Home::below && backing_ != nullptr && offset < backing_->size()) {
      const std::optional<uint64_t> data =
          backing_->next_data(offset, std::min(extent_end, backing_->size()), effort);
      if (data) return data;
    }
    offset = extent_end;
  }
  return std::nullopt;
}

uint64_t MappedContent::next_hole(uint64_t offset, uint64_t end, Effort& effort) const {
  while (offset < end) {
    const Extent extent = *find(offset, end - offset, true);
    if (extent.home == Home::zero) return offset;
    if (!affords(extent, effort)) return end;
    const uint64_t extent_end = offset + extent.length;
    if (extent.home == Home::below) {
      if (backing_ == nullptr || offset >= backing_->size()) return offset;
      const uint64_t below_end = std::min(extent_end, backing_->size());
      const uint64_t hole = backing_->next_hole(offset, below_end, effort);
      if (hole < below_end || below_end < extent_end) return hole;
    }
    offset = extent_end;
  }
  return end;
}

}  // namespace cowfs
