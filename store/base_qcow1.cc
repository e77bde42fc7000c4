#include "store/base_qcow1.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "store/big_endian.h"
#include "store/chunk_size.h"
#include "store/error.h"
#include "store/unpack.h"

namespace cowfs {
namespace {

struct Qcow1OnDisk {
  BigEndian<uint32_t> magic;
  BigEndian<uint32_t> version;
  BigEndian<uint64_t> backing_name_offset;  // 0: no backing file
  BigEndian<uint32_t> backing_name_length;
  BigEndian<uint32_t> modified;
  BigEndian<uint64_t> size;
  BigEndian<uint8_t> cluster_bits;
  BigEndian<uint8_t> l2_bits;
  BigEndian<uint16_t> padding;
  BigEndian<uint32_t> encryption;
  BigEndian<uint64_t> l1_offset;
};
static_assert(sizeof(Qcow1OnDisk) == 48);

constexpr uint32_t kQcow1Magic = 0x514649fb;
constexpr uint64_t kQcow1Packed = uint64_t{1} << 63U;
constexpr uint64_t kQcow1MaxL1Bytes = 32U << 20U;
constexpr size_t kQcow1MaxName = 1023;
constexpr uint64_t kQcow1Sector = 512;

}  // namespace

qcow1::Header qcow1::read_header(const File& file, uint64_t file_length, const std::string& title) {
  const auto refuse = [&](int code, const std::string& what) {
    throw Error::with_message(code, title + ": " + what);
  };
  const auto damaged = [&](const std::string& what) {
    refuse(EUCLEAN, "damaged: its qcow header: " + what);
  };
  Qcow1OnDisk raw;
  const size_t got = file.read(std::as_writable_bytes(std::span(&raw, 1)), 0);
  if (got < 8 || raw.magic != kQcow1Magic || raw.version != 1) {
    refuse(EINVAL, "is no qcow file of version 1: it does not begin as one");
  }
  if (got < sizeof(raw)) damaged("it is cut short");
  Header header;
  header.cluster_bits = uint8_t{raw.cluster_bits};
  header.l2_bits = uint8_t{raw.l2_bits};
  header.size = raw.size;
  header.l1_offset = raw.l1_offset;
  if (header.cluster_bits < 9 || header.cluster_bits > 16) {
    damaged("clusters of 2^" + std::to_string(header.cluster_bits) +
            " bytes; 2^9 to 2^16 are possible");
  }
  if (header.l2_bits < 6 || header.l2_bits > 13) {
    damaged("L2 tables of 2^" + std::to_string(header.l2_bits) +
            " entries; 2^6 to 2^13 are possible");
  }
  if (raw.encryption != 0) {
    refuse(EOPNOTSUPP,
           "is encrypted (AES), which cowfs does not read; `qemu-img convert` makes a copy that "
           "is not");
  }
  if (header.size > kMaxImageSize) {
    refuse(EOPNOTSUPP,
           "its disk has " + std::to_string(header.size) + " bytes, which is over 1 PiB");
  }
  const unsigned table_bits = header.cluster_bits + header.l2_bits;
  header.l1_entries = (header.size + (uint64_t{1} << table_bits) - 1) >> table_bits;
  const uint64_t l1_bytes = header.l1_entries * sizeof(uint64_t);
  if (l1_bytes > kQcow1MaxL1Bytes) {
    refuse(EOPNOTSUPP, "its L1 table is larger than 32 MiB; larger clusters make it smaller");
  }
  if (l1_bytes > 0 && (header.l1_offset < sizeof(raw) || header.l1_offset > file_length ||
                       l1_bytes > file_length - header.l1_offset)) {
    damaged("the L1 table is at byte " + std::to_string(header.l1_offset) + ", outside the file");
  }
  if (raw.backing_name_offset == 0 || raw.backing_name_length == 0) return header;
  if (raw.backing_name_length > kQcow1MaxName) {
    damaged("the name of the backing file has " +
            std::to_string(uint32_t{raw.backing_name_length}) + " bytes, and 1023 are the most");
  }
  header.backing_name.resize(raw.backing_name_length);
  if (raw.backing_name_offset > file_length ||
      file.read(std::as_writable_bytes(std::span(header.backing_name)), raw.backing_name_offset) <
          header.backing_name.size()) {
    damaged("the name of the backing file is outside the file");
  }
  return header;
}

Qcow1Content::Qcow1Content(Files files, const qcow1::Header& header)
    : MappedContent(std::move(files), header.size, header.cluster_bits), l2_bits_(header.l2_bits) {
  std::vector<BigEndian<uint64_t>> table(static_cast<size_t>(header.l1_entries));
  this->files().file.read_exactly(std::as_writable_bytes(std::span(table)), header.l1_offset);
  l1_.assign(table.begin(), table.end());
}

std::optional<MappedContent::Extent> Qcow1Content::find(uint64_t offset, uint64_t length,
                                                        bool wait) const {
  const unsigned table_bits = cluster_bits() + l2_bits_;
  const auto first = static_cast<size_t>(offset >> table_bits);
  if (l1_[first] == 0) {
    const uint64_t end = offset + length;
    size_t next = first + 1;
    while (next < l1_.size() && l1_[next] == 0 && uint64_t{next} << table_bits < end) ++next;
    return Extent{Home::below, std::min(end, uint64_t{next} << table_bits) - offset, 0};
  }
  const size_t entries = size_t{1} << l2_bits_;
  const ByteCache::Entry l2 = table(l1_[first], entries * sizeof(uint64_t), wait);
  if (l2 == nullptr) return std::nullopt;
  const auto entry = [&](size_t index) {
    BigEndian<uint64_t> number;
    std::memcpy(&number, l2->data() + index * sizeof(number), sizeof(number));
    return uint64_t{number};
  };
  auto index = static_cast<size_t>(offset >> cluster_bits() & (entries - 1));
  Extent extent = piece(entry(index), offset);
  while (extent.length < length && extent.home != Home::packed && ++index < entries) {
    const Extent next = piece(entry(index), offset + extent.length);
    const bool goes_on = next.home == extent.home &&
                         (next.home != Home::plain || next.place == extent.place + extent.length);
    if (!goes_on) break;
    extent.length += next.length;
  }
  extent.length = std::min(extent.length, length);
  return extent;
}

MappedContent::Extent Qcow1Content::piece(uint64_t entry, uint64_t offset) const {
  const uint64_t in_cluster = offset & (cluster_size() - 1);
  const uint64_t rest = cluster_size() - in_cluster;
  if (entry == 0) return {Home::below, rest, 0};
  if ((entry & kQcow1Packed) != 0) return {Home::packed, rest, entry & ~kQcow1Packed};
  if (entry % kQcow1Sector != 0) {
    throw broken("a cluster at byte " + std::to_string(entry) + ", where no sector begins");
  }
  return {Home::plain, rest, entry + in_cluster};
}

ByteCache::Bytes Qcow1Content::unpack(uint64_t place) const {
  const unsigned offset_bits = 63 - cluster_bits();
  const uint64_t offset = place & ((uint64_t{1} << offset_bits) - 1);
  const auto length = static_cast<size_t>(place >> offset_bits);
  ByteCache::Bytes bytes(static_cast<size_t>(cluster_size()));
  if (!cowfs::unpack(Packing::deflate, packed_bytes(offset, length), bytes)) {
    throw broken("a compressed cluster at byte " + std::to_string(offset) +
                 " cannot be decompressed");
  }
  return bytes;
}

}  // namespace cowfs
