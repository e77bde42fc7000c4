#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "store/base_format.h"
#include "store/file.h"
#include "store/qcow2_format.h"

/// The header of a qcow2 file that is a layer: version 3, with refcounts of 16 bits, and an
/// extension of our own, which QEMU keeps as it keeps all that it does not know.
namespace cowfs::qcow2 {

struct PrivateExtensionOnDisk {
  char store[36];                      // its UUID
  BigEndian<uint32_t> padding;         // 0
  BigEndian<uint64_t> layer;           // its number
  BigEndian<uint64_t> size;            // of the disk in bytes: the header's is in whole sectors
  BigEndian<uint64_t> backing_digest;  // XXH3-64 of the backing file's name, as cowfs wrote it
};
static_assert(sizeof(PrivateExtensionOnDisk) == 64);

constexpr uint64_t kSectorSize = 512;
/// Refcounts of 2^4 bits.
constexpr unsigned kRefcountOrder = 4;

struct LayerHeader {
  unsigned cluster_bits = 0;
  uint64_t size = 0;  ///< of the disk, in bytes, exact
  Table l1;           ///< with all the entries that it has
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  bool dirty = false;  ///< refcounts are not kept up
  uint64_t compatible = 0;
  std::string store;  ///< its UUID
  uint64_t layer = 0;
  std::string backing_name;  ///< absolute
  BaseFormat backing_format = BaseFormat::raw;
  uint64_t backing_name_offset = 0;
};

/// All but the backing file's name, in one sector, which is old or new after a power cut.
std::array<std::byte, kSectorSize> pack(const LayerHeader& header);

/// A place for a backing file's name in the first cluster that does not touch the present one's, so
/// that a power cut between the two writes leaves the old one.
uint64_t place_for_name(const LayerHeader& header);

/// What is said of a layer's file in its header.
struct LayerFacts {
  LayerHeader header;
  /// Whether the backing file's name is what cowfs wrote: it may be out of date then.
  bool names_our_backing = false;
  /// Whether it is in the form in which cowfs writes it; not after QEMU has written it anew.
  bool is_ours = false;
  /// The backing file's format, if one is named that cowfs knows.
  std::optional<BaseFormat> backing_format;
};

/// EUCLEAN or EOPNOTSUPP, beginning with `title`, saying what to do, for a header that a layer
/// cannot have.
LayerFacts read_layer_header(const File& file, uint64_t file_length, const std::string& title);

/// The size that a disk of `size` bytes has for QEMU: whole sectors.
constexpr uint64_t whole_sectors(uint64_t size) {
  return (size + kSectorSize - 1) / kSectorSize * kSectorSize;
}

}  // namespace cowfs::qcow2
