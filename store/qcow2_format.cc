#include "store/qcow2_format.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "store/chunk_size.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs::qcow2 {
namespace {

constexpr unsigned kMinClusterBits = 9;
constexpr unsigned kMaxClusterBits = 21;
constexpr unsigned kMinExtendedClusterBits = 14;
constexpr unsigned kMaxRefcountOrder = 6;
constexpr size_t kMaxBackingName = 1023;
constexpr uint64_t kMaxL1Bytes = 32U << 20U;  // QEMU's own limit
constexpr uint32_t kMaxSnapshots = 65536;     // likewise
constexpr uint32_t kMaxSnapshotExtra = 1024;

/// Refuses what a header says.
class Refusal {
 public:
  explicit Refusal(const std::string& title) : title_(title) {}
  [[noreturn]] void damaged(const std::string& what) const {
    throw Error::with_message(EUCLEAN, title_ + ": damaged: its qcow2 header: " + what +
                                           "; `qemu-img check` may say more");
  }
  [[noreturn]] void unsupported(const std::string& what) const {
    throw Error::with_message(EOPNOTSUPP, title_ + ": " + what);
  }

 private:
  const std::string& title_;
};

template <typename T>
T object_at(std::span<const std::byte> bytes, size_t offset) {
  T object;
  std::memcpy(&object, bytes.data() + offset, sizeof(object));
  return object;
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Extensions that matter to a reader.
struct Extensions {
  std::string backing_format;
  std::vector<FeatureNameOnDisk> feature_names;
  std::string private_extension;
};

Extensions read_extensions(std::span<const std::byte> bytes, const Refusal& refuse) {
  Extensions found;
  size_t at = 0;
  while (bytes.size() - at >= sizeof(ExtensionOnDisk)) {
    const auto extension = object_at<ExtensionOnDisk>(bytes, at);
    if (extension.type == kEndOfExtensions) break;
    at += sizeof(extension);
    const size_t length = extension.length;
    if (length > bytes.size() - at) refuse.damaged("an extension goes beyond the first cluster");
    const std::span<const std::byte> data = bytes.subspan(at, length);
    if (extension.type == kBackingFormat) {
      found.backing_format = text_of(data);
    } else if (extension.type == kPrivateExtension) {
      found.private_extension = text_of(data);
    } else if (extension.type == kFeatureNames) {
      for (size_t i = 0; i + sizeof(FeatureNameOnDisk) <= length; i += sizeof(FeatureNameOnDisk)) {
        found.feature_names.push_back(object_at<FeatureNameOnDisk>(data, i));
      }
    }
    at = std::min(bytes.size(), at + (length + 7) / 8 * 8);
  }
  return found;
}

std::string feature_name(unsigned bit, const Extensions& extensions) {
  for (const FeatureNameOnDisk& known : extensions.feature_names) {
    if (known.kind != 0 || known.bit != bit) continue;
    const std::string name(known.name, ::strnlen(known.name, sizeof(known.name)));
    return "\"" + printable(name) + "\"";
  }
  return "bit " + std::to_string(bit) + ", without a name";
}

void check_features(const HeaderOnDisk& raw, const Extensions& extensions, const Refusal& refuse) {
  const uint64_t features = raw.incompatible;
  if ((features & kCorrupt) != 0) {
    refuse.unsupported(
        "is marked as damaged by who wrote it: repair it with `qemu-img check -r all`, or bring a "
        "sound copy");
  }
  if ((features & kExternalData) != 0) {
    refuse.unsupported(
        "keeps its data in another file (the qcow2 feature \"external data file\"), which cowfs "
        "does not read; `qemu-img convert -O qcow2` makes one file of both");
  }
  const uint64_t unknown =
      features & ~(kDirty | kCorrupt | kExternalData | kCompression | kExtendedL2);
  if (unknown == 0) return;
  std::string names;
  for (unsigned bit = 0; bit < 64; ++bit) {
    if ((unknown >> bit & 1U) == 0) continue;
    names += (names.empty() ? "" : ", ") + feature_name(bit, extensions);
  }
  refuse.unsupported("has features of qcow2 that cowfs does not know: " + names +
                     "; `qemu-img convert -O qcow2` with an older QEMU makes a copy without");
}

Packing packing_of(const HeaderOnDisk& raw, size_t header_length, const Refusal& refuse) {
  const unsigned type =
      header_length > offsetof(HeaderOnDisk, compression) ? unsigned{raw.compression} : 0;
  if ((type != 0) != ((raw.incompatible & kCompression) != 0)) {
    refuse.damaged("compression type and feature bits contradict each other");
  }
  if (type > 1) {
    refuse.unsupported("is compressed in a way that cowfs does not know (type " +
                       std::to_string(type) + "; it knows zlib and zstd)");
  }
  return type == 1 ? Packing::zstd : Packing::deflate;
}

uint64_t entries_needed(uint64_t size, const Header& header) {
  const unsigned bits = header.cluster_bits + header.l2_bits();
  return (size + (uint64_t{1} << bits) - 1) >> bits;
}

/// The part of an L1 table that a disk of `size` needs.
Table checked_l1(uint64_t offset, uint64_t entries, uint64_t size, const Header& header,
                 uint64_t file_length, const Refusal& refuse) {
  const uint64_t needed = entries_needed(size, header);
  if (entries < needed) {
    refuse.damaged("its L1 table has " + std::to_string(entries) + " entries, and the size of " +
                   std::to_string(size) + " bytes needs " + std::to_string(needed));
  }
  if (needed * sizeof(uint64_t) > kMaxL1Bytes) {
    refuse.unsupported("its L1 table is larger than 32 MiB; larger clusters make it smaller");
  }
  if (needed == 0) return {};
  if (offset % header.cluster_size() != 0) {
    refuse.damaged("the L1 table is at byte " + std::to_string(offset) +
                   ", where no cluster begins");
  }
  const uint64_t length = needed * sizeof(uint64_t);
  if (offset == 0 || offset > file_length || length > file_length - offset) {
    refuse.damaged("the L1 table is at byte " + std::to_string(offset) + ", outside the file");
  }
  return {offset, needed};
}

void check_size(uint64_t size, const Refusal& refuse) {
  if (size > kMaxImageSize) {
    refuse.unsupported("its disk has " + std::to_string(size) + " bytes, which is over 1 PiB");
  }
}

std::string backing_name_of(const HeaderOnDisk& raw, std::span<const std::byte> first,
                            const Refusal& refuse) {
  const uint64_t offset = raw.backing_name_offset;
  const size_t length = raw.backing_name_length;
  if (offset == 0 || length == 0) return "";
  if (length > kMaxBackingName) {
    refuse.damaged("the name of the backing file has " + std::to_string(length) +
                   " bytes, and 1023 are the most");
  }
  if (offset > first.size() || length > first.size() - offset) {
    refuse.damaged("the name of the backing file is outside the first cluster");
  }
  return text_of(first.subspan(offset, length));
}

}  // namespace

Header read_header(const File& file, uint64_t file_length, const std::string& title) {
  const Refusal refuse(title);
  std::vector<std::byte> first(sizeof(HeaderOnDisk));
  const size_t got = file.read(first, 0);
  const auto raw = object_at<HeaderOnDisk>(first, 0);
  if (got < 8 || raw.magic != kMagic) {
    throw Error::with_message(EINVAL, title + ": is no qcow2 file: it does not begin as one");
  }
  if (raw.version == 1) {
    throw Error::with_message(EINVAL, title + ": is a qcow file of version 1, and no qcow2 file");
  }
  if (raw.version != 2 && raw.version != 3) {
    refuse.unsupported("has version " + std::to_string(uint32_t{raw.version}) +
                       " of qcow, and cowfs knows 1, 2 and 3");
  }
  if (got < (raw.version == 2 ? kHeaderLength2 : kHeaderLength3)) refuse.damaged("it is cut short");

  Header header;
  header.version = raw.version;
  header.cluster_bits = raw.cluster_bits;
  header.size = raw.size;
  if (header.cluster_bits < kMinClusterBits || header.cluster_bits > kMaxClusterBits) {
    refuse.damaged("clusters of 2^" + std::to_string(header.cluster_bits) +
                   " bytes; 2^9 to 2^21 are possible");
  }
  first.resize(static_cast<size_t>(std::min(header.cluster_size(), file_length)));
  first.resize(file.read(first, 0));
  const size_t header_length = raw.version == 2 ? kHeaderLength2 : size_t{raw.header_length};
  if (header_length > first.size() || (raw.version == 3 && header_length < kHeaderLength3)) {
    refuse.damaged("its own length is given as " + std::to_string(header_length) + " bytes");
  }

  // Extensions end where the name begins, should nothing else end them.
  size_t end = first.size();
  if (raw.backing_name_offset >= header_length && raw.backing_name_offset < end) {
    end = static_cast<size_t>(raw.backing_name_offset);
  }
  const Extensions extensions =
      read_extensions(std::span(first).subspan(header_length, end - header_length), refuse);
  if (raw.version == 3) {
    check_features(raw, extensions, refuse);
    if (raw.refcount_order > kMaxRefcountOrder) {
      refuse.damaged("refcounts of 2^" + std::to_string(uint32_t{raw.refcount_order}) +
                     " bits; 64 bits are the most");
    }
    header.extended_l2 = (raw.incompatible & kExtendedL2) != 0;
    header.packing = packing_of(raw, header_length, refuse);
    if (header.extended_l2 && header.cluster_bits < kMinExtendedClusterBits) {
      refuse.damaged("subclusters, with clusters under 16 KiB");
    }
  }
  if (raw.encryption != 0) {
    const uint32_t method = raw.encryption;
    refuse.unsupported(std::string("is encrypted (") +
                       (method == 1   ? "AES"
                        : method == 2 ? "LUKS"
                                      : "an unknown method") +
                       "), which cowfs does not read; `qemu-img convert` makes a copy that is not");
  }
  check_size(header.size, refuse);
  header.l1 = checked_l1(raw.l1_offset, raw.l1_entries, header.size, header, file_length, refuse);
  header.snapshots = raw.snapshots;
  header.snapshots_offset = raw.snapshots_offset;
  header.backing_name = backing_name_of(raw, first, refuse);
  header.backing_format = extensions.backing_format;
  header.dirty = raw.version == 3 && (raw.incompatible & kDirty) != 0;
  header.compatible = raw.version == 3 ? uint64_t{raw.compatible} : 0;
  header.l1_offset = raw.l1_offset;
  header.l1_room = raw.l1_entries;
  header.refcount_table_offset = raw.refcount_table_offset;
  header.refcount_table_clusters = raw.refcount_table_clusters;
  if (raw.version == 3) header.refcount_order = raw.refcount_order;
  header.backing_name_offset = raw.backing_name_offset;
  header.private_extension = extensions.private_extension;
  return header;
}

Snapshot find_snapshot(const File& file, uint64_t file_length, const Header& header,
                       const std::string& wanted, const std::string& title) {
  const Refusal refuse(title);
  if (header.snapshots > kMaxSnapshots) {
    refuse.damaged("it has " + std::to_string(header.snapshots) +
                   " snapshots, and 65536 are the most");
  }
  std::optional<Snapshot> by_name;
  std::optional<Snapshot> by_id;
  uint64_t at = header.snapshots_offset;
  for (uint32_t i = 0; i < header.snapshots; ++i) {
    at = (at + 7) / 8 * 8;
    std::vector<std::byte> bytes(sizeof(SnapshotOnDisk));
    if (at > file_length || file.read(bytes, at) < bytes.size()) {
      refuse.damaged("its table of snapshots goes beyond the end of the file");
    }
    const auto raw = object_at<SnapshotOnDisk>(bytes, 0);
    at += sizeof(raw);
    if (raw.extra_length > kMaxSnapshotExtra) {
      refuse.damaged("its table of snapshots has an entry that is too long");
    }
    const size_t extra = raw.extra_length;
    bytes.resize(extra + raw.id_length + raw.name_length);
    if (file.read(bytes, at) < bytes.size()) {
      refuse.damaged("its table of snapshots goes beyond the end of the file");
    }
    at += bytes.size();
    const std::span<const std::byte> rest(bytes);
    Snapshot snapshot{.id = text_of(rest.subspan(extra, raw.id_length)),
                      .name = text_of(rest.subspan(extra + raw.id_length)),
                      .l1 = {},
                      .size = header.size};
    const bool same_name = snapshot.name == wanted;
    if (!same_name && snapshot.id != wanted) continue;
    if (same_name && by_name) {
      throw Error::with_message(EINVAL, title + ": has several snapshots of the name '" +
                                            printable(wanted) +
                                            "'; name one by its id, `qemu-img snapshot -l` has it");
    }
    // 8 bytes of another size, then that of the disk.
    if (extra >= 16) snapshot.size = object_at<BigEndian<uint64_t>>(rest, 8);
    check_size(snapshot.size, refuse);
    snapshot.l1 =
        checked_l1(raw.l1_offset, raw.l1_entries, snapshot.size, header, file_length, refuse);
    (same_name ? by_name : by_id) = snapshot;
  }
  if (by_name) return *by_name;
  if (by_id) return *by_id;
  throw Error::with_message(ENOENT, title + ": has no snapshot '" + printable(wanted) +
                                        "'; `qemu-img snapshot -l` lists them");
}

}  // namespace cowfs::qcow2
