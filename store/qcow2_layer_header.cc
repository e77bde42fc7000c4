#include "store/qcow2_layer_header.h"

#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "store/error.h"

namespace cowfs::qcow2 {
namespace {

constexpr uint64_t kLazyRefcounts = 1U;  // a compatible feature: QEMU does as we do

// Where names go: at the first of these where the old one is not. All are in the first cluster.
constexpr std::array<uint64_t, 3> kPlacesForName{1024, 2048, 3072};
constexpr uint64_t kMostName = 1023;

uint64_t digest_of(std::string_view name) { return XXH3_64bits(name.data(), name.size()); }

/// Puts objects behind each other.
class Packer {
 public:
  explicit Packer(std::span<std::byte> bytes) : rest_(bytes) {}
  void put(const void* data, size_t length) {
    if (length == 0) return;  // there may be no data either
    std::memcpy(rest_.data(), data, length);
    rest_ = rest_.subspan(length);
  }
  void extension(uint32_t type, const void* data, size_t length) {
    ExtensionOnDisk extension;
    extension.type = type;
    extension.length = static_cast<uint32_t>(length);
    put(&extension, sizeof(extension));
    put(data, length);
    rest_ = rest_.subspan((8 - length % 8) % 8);
  }

 private:
  std::span<std::byte> rest_;
};

}  // namespace

std::array<std::byte, kSectorSize> pack(const LayerHeader& header) {
  std::array<std::byte, kSectorSize> bytes{};
  HeaderOnDisk raw{};
  raw.magic = kMagic;
  raw.version = 3;
  raw.backing_name_offset = header.backing_name_offset;
  raw.backing_name_length = static_cast<uint32_t>(header.backing_name.size());
  raw.cluster_bits = header.cluster_bits;
  raw.size = whole_sectors(header.size);
  raw.l1_entries = static_cast<uint32_t>(header.l1.entries);
  raw.l1_offset = header.l1.offset;
  raw.refcount_table_offset = header.refcount_table_offset;
  raw.refcount_table_clusters = header.refcount_table_clusters;
  raw.incompatible = header.dirty ? kDirty : 0;
  raw.compatible = header.compatible & kLazyRefcounts;
  raw.refcount_order = kRefcountOrder;
  raw.header_length = sizeof(raw);
  Packer packer(bytes);
  packer.put(&raw, sizeof(raw));
  const std::string_view format = format_name(header.backing_format);
  packer.extension(kBackingFormat, format.data(), format.size());
  PrivateExtensionOnDisk own{};
  std::memcpy(own.store, header.store.data(), std::min(header.store.size(), sizeof(own.store)));
  own.layer = header.layer;
  own.size = header.size;
  own.backing_digest = digest_of(header.backing_name);
  packer.extension(kPrivateExtension, &own, sizeof(own));
  packer.extension(kEndOfExtensions, nullptr, 0);
  return bytes;
}

uint64_t place_for_name(const LayerHeader& header) {
  const uint64_t begin = header.backing_name_offset;
  const uint64_t end = begin + header.backing_name.size();
  for (const uint64_t place : kPlacesForName) {
    if (end <= place || begin >= place + kMostName) return place;
  }
  return kPlacesForName.front();
}

LayerFacts read_layer_header(const File& file, uint64_t file_length, const std::string& title) {
  const auto damaged = [&](const std::string& what) {
    return Error::with_message(EUCLEAN, title + ": damaged: " + what);
  };
  Header raw;
  try {
    raw = read_header(file, file_length, title);
  } catch (const Error& error) {
    if (error.code() != EINVAL) throw;
    throw Error::with_message(EUCLEAN, error.what());
  }
  const auto unsupported = [&](const std::string& what) {
    return Error::with_message(EOPNOTSUPP, title + ": " + what);
  };
  if (raw.private_extension.size() < sizeof(PrivateExtensionOnDisk)) {
    throw damaged(
        "it is a qcow2 file, and none that cowfs has made for a layer; put back the right one");
  }
  if (raw.version != 3) {
    throw unsupported("is qcow2 of version 2 by now; `qemu-img amend -o compat=1.1` makes it 3");
  }
  if (raw.extended_l2) {
    throw unsupported("has subclusters (extended L2 entries), which a layer cannot have");
  }
  if (raw.snapshots != 0) {
    throw unsupported(
        "holds snapshots that QEMU has made, over which cowfs cannot write; delete them with "
        "`qemu-img snapshot -d`");
  }
  PrivateExtensionOnDisk own;
  std::memcpy(&own, raw.private_extension.data(), sizeof(own));
  LayerFacts facts;
  facts.header = {.cluster_bits = raw.cluster_bits,
                  // Where the two do not go together, QEMU has changed the size.
                  .size = whole_sectors(own.size) == raw.size ? uint64_t{own.size} : raw.size,
                  .l1 = {raw.l1_offset, raw.l1_room},
                  .refcount_table_offset = raw.refcount_table_offset,
                  .refcount_table_clusters = raw.refcount_table_clusters,
                  .dirty = raw.dirty || raw.refcount_order != kRefcountOrder,
                  .compatible = raw.compatible,
                  .store = std::string(own.store, sizeof(own.store)),
                  .layer = own.layer,
                  .backing_name = raw.backing_name,
                  .backing_format = BaseFormat::raw,
                  .backing_name_offset = raw.backing_name_offset};
  facts.backing_format = find_base_format(raw.backing_format);
  facts.header.backing_format = facts.backing_format.value_or(BaseFormat::raw);
  facts.names_our_backing = own.backing_digest == digest_of(raw.backing_name);
  std::array<std::byte, kSectorSize> sector{};
  file.read_exactly(sector, 0);
  facts.is_ours = facts.backing_format && sector == pack(facts.header);
  return facts;
}

}  // namespace cowfs::qcow2
