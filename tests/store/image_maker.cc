#include "tests/store/image_maker.h"

#include <zlib.h>
#include <zstd.h>

#include <cstring>
#include <span>
#include <stdexcept>

#include "store/qcow2_format.h"

namespace cowfs::test {
namespace {

using Bytes = std::vector<std::byte>;

template <typename T>
void put(Bytes& bytes, uint64_t offset, const T& object) {
  if (bytes.size() < offset + sizeof(T)) bytes.resize(offset + sizeof(T));
  std::memcpy(bytes.data() + offset, &object, sizeof(T));
}

void put_text(Bytes& bytes, uint64_t offset, const std::string& text) {
  if (bytes.size() < offset + text.size()) bytes.resize(offset + text.size());
  std::memcpy(bytes.data() + offset, text.data(), text.size());
}

void put_number(Bytes& bytes, uint64_t offset, uint64_t number) {
  put(bytes, offset, BigEndian<uint64_t>(number));
}

Bytes deflated(const Bytes& bytes) {
  z_stream stream{};
  Bytes packed(bytes.size() + 1024);
  if (deflateInit2(&stream, 9, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK) {
    throw std::runtime_error("deflateInit2");
  }
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(packed.size() - stream.avail_out);
  deflateEnd(&stream);
  return packed;
}

Bytes zstd_packed(const Bytes& bytes) {
  Bytes packed(ZSTD_compressBound(bytes.size()));
  packed.resize(ZSTD_compress(packed.data(), packed.size(), bytes.data(), bytes.size(), 3));
  return packed;
}

/// Appends at the next multiple of `alignment`; returns where.
uint64_t append(Bytes& file, const Bytes& bytes, uint64_t alignment) {
  file.resize((file.size() + alignment - 1) / alignment * alignment);
  const uint64_t place = file.size();
  file.insert(file.end(), bytes.begin(), bytes.end());
  return place;
}

Bytes whole(const MadeCluster& cluster, uint64_t size) {
  Bytes bytes = cluster.bytes;
  bytes.resize(size);
  return bytes;
}

}  // namespace

Bytes MadeQcow2::file() const {
  const uint64_t cluster_size = uint64_t{1} << cluster_bits;
  const unsigned l2_bits = cluster_bits - (extended_l2 ? 4 : 3);
  const uint64_t l1_entries = (size >> (cluster_bits + l2_bits)) + 1;
  qcow2::HeaderOnDisk header;
  header.magic = qcow2::kMagic;
  header.version = version;
  header.cluster_bits = cluster_bits;
  header.size = size;
  header.l1_entries = static_cast<uint32_t>(l1_entries);
  header.refcount_order = 4;
  header.header_length = sizeof(header);
  header.incompatible = (extended_l2 ? qcow2::kExtendedL2 : 0) | (zstd ? qcow2::kCompression : 0);
  header.compression = static_cast<uint8_t>(zstd);

  Bytes file(cluster_size);
  uint64_t at = version == 2 ? qcow2::kHeaderLength2 : sizeof(header);
  if (!backing_format.empty()) {
    qcow2::ExtensionOnDisk extension;
    extension.type = qcow2::kBackingFormat;
    extension.length = static_cast<uint32_t>(backing_format.size());
    put(file, at, extension);
    put_text(file, at + sizeof(extension), backing_format);
    at += sizeof(extension) + (backing_format.size() + 7) / 8 * 8;
  }
  at += sizeof(qcow2::ExtensionOnDisk);  // of the end
  if (!backing.empty()) {
    header.backing_name_offset = at;
    header.backing_name_length = static_cast<uint32_t>(backing.size());
    put_text(file, at, backing);
  }
  file.resize(cluster_size);
  const uint64_t l1 = append(file, Bytes(l1_entries * 8), cluster_size);
  header.l1_offset = l1;
  std::map<uint64_t, uint64_t> tables;
  for (const auto& [number, cluster] : clusters) {
    const uint64_t first = number >> l2_bits;
    if (!tables.contains(first)) {
      tables[first] = append(file, Bytes(cluster_size), cluster_size);
      put_number(file, l1 + first * 8, tables[first] | uint64_t{1} << 63U);
    }
    const uint64_t entry_size = extended_l2 ? 16 : 8;
    const uint64_t entry = tables[first] + (number & ((1U << l2_bits) - 1)) * entry_size;
    const Bytes bytes = whole(cluster, cluster_size);
    if (cluster.kind == MadeCluster::Kind::zero) {
      put_number(file, entry, extended_l2 ? 0 : qcow2::kZeroFlag);
      if (extended_l2) put_number(file, entry + 8, cluster.subclusters << 32U);
    } else if (cluster.kind == MadeCluster::Kind::packed) {
      const Bytes packed = zstd ? zstd_packed(bytes) : deflated(bytes);
      const uint64_t place = append(file, packed, 1);
      const uint64_t sectors = (place + packed.size() - 1) / 512 - place / 512;
      put_number(file, entry, qcow2::kCompressedFlag | place | sectors << (70 - cluster_bits));
    } else {
      put_number(file, entry, append(file, bytes, cluster_size) | uint64_t{1} << 63U);
      if (extended_l2) put_number(file, entry + 8, cluster.subclusters);
    }
  }
  if (!snapshots.empty()) {
    header.snapshots = static_cast<uint32_t>(snapshots.size());
    header.snapshots_offset = append(file, {}, cluster_size);
    uint64_t place = file.size();
    for (const Snapshot& snapshot : snapshots) {
      qcow2::SnapshotOnDisk entry;
      entry.l1_offset = l1;
      entry.l1_entries = static_cast<uint32_t>(l1_entries);
      entry.id_length = static_cast<uint16_t>(snapshot.id.size());
      entry.name_length = static_cast<uint16_t>(snapshot.name.size());
      entry.extra_length = 16;
      place = (place + 7) / 8 * 8;
      put(file, place, entry);
      put_number(file, place + sizeof(entry) + 8, size);
      place += sizeof(entry) + 16;
      put_text(file, place, snapshot.id + snapshot.name);
      place += snapshot.id.size() + snapshot.name.size();
    }
  }
  if (version == 2) {
    std::memcpy(file.data(), &header, qcow2::kHeaderLength2);
  } else {
    put(file, 0, header);
  }
  return file;
}

Bytes MadeQcow1::file() const {
  const uint64_t cluster_size = uint64_t{1} << cluster_bits;
  const uint64_t table_size = uint64_t{8} << l2_bits;
  constexpr uint64_t kL1 = 48;
  const uint64_t l1_entries = (size >> (cluster_bits + l2_bits)) + 1;
  Bytes file(kL1 + l1_entries * 8);
  put(file, 0, BigEndian<uint32_t>(qcow2::kMagic));
  put(file, 4, BigEndian<uint32_t>(1));
  put_number(file, 24, size);
  put(file, 32, static_cast<uint8_t>(cluster_bits));
  put(file, 33, static_cast<uint8_t>(l2_bits));
  put_number(file, 40, kL1);
  if (!backing.empty()) {
    put_number(file, 8, file.size());
    put(file, 16, BigEndian<uint32_t>(static_cast<uint32_t>(backing.size())));
    put_text(file, file.size(), backing);
  }
  std::map<uint64_t, uint64_t> tables;
  for (const auto& [number, cluster] : clusters) {
    const uint64_t first = number >> l2_bits;
    if (!tables.contains(first)) {
      tables[first] = append(file, Bytes(table_size), cluster_size);
      put_number(file, kL1 + first * 8, tables[first]);
    }
    const uint64_t entry = tables[first] + (number & ((1U << l2_bits) - 1)) * 8;
    const Bytes bytes = whole(cluster, cluster_size);
    if (cluster.kind == MadeCluster::Kind::packed) {
      const Bytes packed = deflated(bytes);
      const uint64_t place = append(file, packed, 1);
      put_number(file, entry,
                 uint64_t{1} << 63U | uint64_t{packed.size()} << (63 - cluster_bits) | place);
    } else {
      put_number(file, entry, append(file, bytes, cluster_size));
    }
  }
  return file;
}

}  // namespace cowfs::test
