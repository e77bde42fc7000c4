#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "store/big_endian.h"
#include "store/file.h"
#include "store/unpack.h"

/// qcow2, versions 2 and 3, as it lies on disk: docs/interop/qcow2.txt in QEMU's sources. What is
/// read of a header has been checked, so far as the header and the length of its file tell (I10).
namespace cowfs::qcow2 {

// ---- on disk -----------------------------------------------------------------------------------

constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"

struct HeaderOnDisk {
  BigEndian<uint32_t> magic;
  BigEndian<uint32_t> version;
  BigEndian<uint64_t> backing_name_offset;  // 0: no backing file
  BigEndian<uint32_t> backing_name_length;
  BigEndian<uint32_t> cluster_bits;
  BigEndian<uint64_t> size;
  BigEndian<uint32_t> encryption;
  BigEndian<uint32_t> l1_entries;
  BigEndian<uint64_t> l1_offset;
  BigEndian<uint64_t> refcount_table_offset;
  BigEndian<uint32_t> refcount_table_clusters;
  BigEndian<uint32_t> snapshots;
  BigEndian<uint64_t> snapshots_offset;
  // Version 3 only.
  BigEndian<uint64_t> incompatible;
  BigEndian<uint64_t> compatible;
  BigEndian<uint64_t> autoclear;
  BigEndian<uint32_t> refcount_order;
  BigEndian<uint32_t> header_length;
  // Where header_length says so.
  BigEndian<uint8_t> compression;
  BigEndian<uint8_t> padding[7];
};
static_assert(sizeof(HeaderOnDisk) == 112);
constexpr size_t kHeaderLength2 = 72;   // of version 2; extensions begin behind it
constexpr size_t kHeaderLength3 = 104;  // at least, of version 3

struct ExtensionOnDisk {
  BigEndian<uint32_t> type;
  BigEndian<uint32_t> length;  // of the data behind it, which is filled up to 8 bytes
};
static_assert(sizeof(ExtensionOnDisk) == 8);
constexpr uint32_t kEndOfExtensions = 0;
constexpr uint32_t kBackingFormat = 0xe2792aca;
constexpr uint32_t kFeatureNames = 0x6803f857;
constexpr uint32_t kPrivateExtension = 0x636f7766;  // "cowf": cowfs' own, see qcow2_layer_header.h

struct FeatureNameOnDisk {
  BigEndian<uint8_t> kind;  // 0: incompatible
  BigEndian<uint8_t> bit;
  char name[46];
};
static_assert(sizeof(FeatureNameOnDisk) == 48);

struct SnapshotOnDisk {
  BigEndian<uint64_t> l1_offset;
  BigEndian<uint32_t> l1_entries;
  BigEndian<uint16_t> id_length;
  BigEndian<uint16_t> name_length;
  BigEndian<uint32_t> seconds;
  BigEndian<uint32_t> nanoseconds;
  BigEndian<uint64_t> guest_nanoseconds;
  BigEndian<uint32_t> state_size;
  BigEndian<uint32_t> extra_length;
};
static_assert(sizeof(SnapshotOnDisk) == 40);

// Incompatible features.
constexpr uint64_t kDirty = 1U << 0U;         // refcounts may be wrong: no matter for reading
constexpr uint64_t kCorrupt = 1U << 1U;       // found damaged
constexpr uint64_t kExternalData = 1U << 2U;  // the data are in another file
constexpr uint64_t kCompression = 1U << 3U;   // HeaderOnDisk::compression is not zlib
constexpr uint64_t kExtendedL2 = 1U << 4U;    // L2 entries of 16 bytes, with a map of subclusters

// Entries of L1 and L2 tables.
constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
constexpr uint64_t kZeroFlag = 1U;
constexpr uint64_t kCopiedFlag = uint64_t{1} << 63U;  // its refcount is 1
constexpr uint64_t kCompressedFlag = uint64_t{1} << 62U;
constexpr unsigned kSubclusters = 32;  // in a cluster, with kExtendedL2

// ---- read --------------------------------------------------------------------------------------

/// Where an L1 table lies; within the file.
struct Table {
  uint64_t offset = 0;
  uint64_t entries = 0;  ///< as many as the disk's size needs
};

struct Header {
  unsigned version = 0;
  unsigned cluster_bits = 0;
  uint64_t size = 0;  ///< of the disk
  bool extended_l2 = false;
  Packing packing = Packing::deflate;
  Table l1;
  uint32_t snapshots = 0;
  uint64_t snapshots_offset = 0;
  std::string backing_name;    ///< empty: no backing file
  std::string backing_format;  ///< empty: the header does not say

  // For who writes to the file too:
  bool dirty = false;  ///< refcounts may be wrong
  uint64_t compatible = 0;
  uint64_t l1_offset = 0;
  uint64_t l1_room = 0;  ///< entries that the L1 table has, needed or not
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  unsigned refcount_order = 4;  ///< refcounts of so many bits, as a power of two
  uint64_t backing_name_offset = 0;
  std::string private_extension;  ///< of type kPrivateExtension; empty: there is none

  [[nodiscard]] uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  [[nodiscard]] unsigned entry_bits() const { return extended_l2 ? 4 : 3; }
  /// Entries in an L2 table, as a power of two.
  [[nodiscard]] unsigned l2_bits() const { return cluster_bits - entry_bits(); }
};

/// EINVAL, EUCLEAN or EOPNOTSUPP, beginning with `title`, for one that cannot be read.
Header read_header(const File& file, uint64_t file_length, const std::string& title);

struct Snapshot {
  std::string id;
  std::string name;
  Table l1;
  uint64_t size = 0;  ///< of the disk
};

/// The internal snapshot of this name or, if none has it, of this id. ENOENT, and EINVAL for a name
/// of several.
Snapshot find_snapshot(const File& file, uint64_t file_length, const Header& header,
                       const std::string& wanted, const std::string& title);

}  // namespace cowfs::qcow2
