#include "store/base_qcow2.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace cowfs {
namespace {

/// L2 tables are read in pieces of this size, or as a whole if they are smaller: one of 2 MiB maps
/// 512 GiB, of which a machine may want 4 KiB.
constexpr uint64_t kSlice = 64U << 10U;

uint64_t entry_at(const std::byte* place) {
  BigEndian<uint64_t> number;
  std::memcpy(&number, place, sizeof(number));
  return number;
}

}  // namespace

Qcow2Content::View Qcow2Content::view(const Files& files, const qcow2::Header& header,
                                      const std::string* snapshot) {
  if (snapshot == nullptr) return {header.l1, header.size};
  const qcow2::Snapshot found =
      qcow2::find_snapshot(files.file, files.length, header, *snapshot, files.title);
  return {found.l1, found.size};
}

Qcow2Content::Qcow2Content(const Files& files, const qcow2::Header& header,
                           const std::string* snapshot)
    : Qcow2Content(files, header, view(files, header, snapshot)) {}

Qcow2Content::Qcow2Content(Files files, const qcow2::Header& header, const View& view)
    : MappedContent(std::move(files), view.size, header.cluster_bits),
      version_(header.version),
      entry_bits_(header.entry_bits()),
      l2_bits_(header.l2_bits()),
      packing_(header.packing) {
  std::vector<BigEndian<uint64_t>> table(static_cast<size_t>(view.l1.entries));
  this->files().file.read_exactly(std::as_writable_bytes(std::span(table)), view.l1.offset);
  l1_.reserve(table.size());
  for (const uint64_t entry : table) l1_.push_back(entry & qcow2::kOffsetMask);
}

std::optional<MappedContent::Extent> Qcow2Content::find(uint64_t offset, uint64_t length,
                                                        bool wait) const {
  const unsigned table_bits = cluster_bits() + l2_bits_;
  const auto first = static_cast<size_t>(offset >> table_bits);
  if (l1_[first] == 0) {
    const uint64_t end = offset + length;
    size_t next = first + 1;
    while (next < l1_.size() && l1_[next] == 0 && uint64_t{next} << table_bits < end) ++next;
    return Extent{Home::below, std::min(end, uint64_t{next} << table_bits) - offset, 0};
  }
  const uint64_t slice_size = std::min(kSlice, cluster_size());
  const uint64_t index = offset >> cluster_bits() & ((uint64_t{1} << l2_bits_) - 1);
  const uint64_t in_table = index << entry_bits_;
  const uint64_t slice_place = l1_[first] + in_table / slice_size * slice_size;
  if (l1_[first] % cluster_size() != 0) {
    throw broken("an L2 table at byte " + std::to_string(l1_[first]) + ", where no cluster begins");
  }
  const ByteCache::Entry slice = table(slice_place, static_cast<size_t>(slice_size), wait);
  if (slice == nullptr) return std::nullopt;

  const std::byte* entry = slice->data() + in_table % slice_size;
  const std::byte* const slice_end = slice->data() + slice_size;
  Extent extent = piece(entry, offset);
  while (extent.length < length && extent.home != Home::packed) {
    const uint64_t at = offset + extent.length;
    if (at % cluster_size() == 0) entry += size_t{1} << entry_bits_;
    if (entry == slice_end) break;
    const Extent next = piece(entry, at);
    const bool goes_on = next.home == extent.home &&
                         (next.home != Home::plain || next.place == extent.place + extent.length);
    if (!goes_on) break;
    extent.length += next.length;
  }
  extent.length = std::min(extent.length, length);
  return extent;
}

MappedContent::Extent Qcow2Content::piece(const std::byte* entry, uint64_t offset) const {
  const uint64_t in_cluster = offset & (cluster_size() - 1);
  const uint64_t rest = cluster_size() - in_cluster;
  const uint64_t value = entry_at(entry);
  if ((value & qcow2::kCompressedFlag) != 0) {
    return {Home::packed, rest, value & (qcow2::kCompressedFlag - 1)};
  }
  if (entry_bits_ == 4) return subcluster(value, entry_at(entry + sizeof(uint64_t)), offset);
  if ((value & qcow2::kZeroFlag) != 0) {
    if (version_ < 3) throw broken("a cluster of zeros, which version 2 of qcow2 does not have");
    return {Home::zero, rest, 0};
  }
  const uint64_t place = value & qcow2::kOffsetMask;
  if (place == 0) return {Home::below, rest, 0};
  if (place % cluster_size() != 0) {
    throw broken("a cluster at byte " + std::to_string(place) + ", where none begins");
  }
  return {Home::plain, rest, place + in_cluster};
}

MappedContent::Extent Qcow2Content::subcluster(uint64_t entry, uint64_t bitmap,
                                               uint64_t offset) const {
  const uint64_t size = cluster_size() / qcow2::kSubclusters;
  const uint64_t in_cluster = offset & (cluster_size() - 1);
  const uint64_t number = in_cluster / size;
  const uint64_t rest = size - in_cluster % size;
  const bool present = (bitmap >> number & 1U) != 0;
  const bool zeros = (bitmap >> (number + qcow2::kSubclusters) & 1U) != 0;
  const uint64_t place = entry & qcow2::kOffsetMask;
  if (present && zeros) throw broken("a subcluster both with data and of zeros");
  if (zeros) return {Home::zero, rest, 0};
  if (!present) return {Home::below, rest, 0};
  if (place == 0 || place % cluster_size() != 0) {
    throw broken("a cluster at byte " + std::to_string(place) + ", where none begins");
  }
  return {Home::plain, rest, place + in_cluster};
}

ByteCache::Bytes Qcow2Content::unpack(uint64_t place) const {
  constexpr uint64_t kSector = 512;
  const unsigned offset_bits = 62 - (cluster_bits() - 8);
  const uint64_t offset = place & ((uint64_t{1} << offset_bits) - 1);
  const uint64_t more_sectors = place >> offset_bits;
  const uint64_t length = (more_sectors + 1) * kSector - offset % kSector;
  ByteCache::Bytes bytes(static_cast<size_t>(cluster_size()));
  if (!cowfs::unpack(packing_, packed_bytes(offset, static_cast<size_t>(length)), bytes)) {
    throw broken("a compressed cluster at byte " + std::to_string(offset) +
                 " cannot be decompressed");
  }
  return bytes;
}

}  // namespace cowfs
