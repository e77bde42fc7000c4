#pragma once

#include <string>

#include "store/base_content.h"
#include "store/error.h"
#include "store/file.h"

namespace cowfs {

/// What the formats that map a disk to clusters of their file have in common: reading by runs,
/// decompressed clusters, what lies below. A format says where things are and how they are packed.
class MappedContent : public BaseContent {
 public:
  struct Files {
    const File& file;    ///< must outlive the content
    uint64_t length;     ///< of the file when it was opened
    BaseCaches& caches;  ///< must outlive it too
    std::string title;   ///< of the file, for messages
  };

  void read(std::span<std::byte> buffer, uint64_t offset) const final;
  [[nodiscard]] size_t read_cached(std::span<std::byte> buffer, uint64_t offset) const final;
  [[nodiscard]] std::optional<uint64_t> next_data(uint64_t offset, uint64_t end,
                                                  Effort& effort) const final;
  [[nodiscard]] uint64_t next_hole(uint64_t offset, uint64_t end, Effort& effort) const final;

  /// What shows where this file has nothing; none: zeros, as beyond its end. Set before any read.
  void set_backing(const BaseContent* backing) { backing_ = backing; }

 protected:
  enum class Home {
    below,   ///< not in this file
    zero,    ///< zeros, whatever is below
    plain,   ///< in the file, as it is
    packed,  ///< in the file, compressed
  };
  struct Extent {
    Home home;
    uint64_t length;  ///< of a packed one to the end of its cluster at most
    uint64_t place;   ///< of a plain one its offset in the file; of a packed one for `unpack`
  };
  MappedContent(Files files, uint64_t size, unsigned cluster_bits);

  /// What is at the front of [offset, offset + length), a run as long as can be told at once.
  /// Nothing if that would take a wait for storage and `wait` is false. EIO for a broken map.
  [[nodiscard]] virtual std::optional<Extent> find(uint64_t offset, uint64_t length,
                                                   bool wait) const = 0;
  /// The cluster behind a packed extent. EIO if it is broken.
  [[nodiscard]] virtual ByteCache::Bytes unpack(uint64_t place) const = 0;

  [[nodiscard]] const Files& files() const { return files_; }
  [[nodiscard]] uint64_t cluster_size() const { return uint64_t{1} << cluster_bits_; }
  [[nodiscard]] unsigned cluster_bits() const { return cluster_bits_; }

  /// A piece of a mapping table, in the cache afterwards; null where that needs a wait and `wait`
  /// is false. EIO if it does not lie in the file.
  [[nodiscard]] ByteCache::Entry table(uint64_t place, size_t length, bool wait) const;
  /// `length` bytes of compressed data at `place`, less where the file ends before.
  [[nodiscard]] std::span<const std::byte> packed_bytes(uint64_t place, size_t length) const;
  /// An Error with EIO: the file is damaged at what is wanted of it.
  [[nodiscard]] Error broken(const std::string& what) const;

 private:
  struct Packed {
    uint64_t place;
    uint64_t offset;  // in its cluster
    std::span<std::byte> to;
  };

  [[nodiscard]] ByteCache::Entry cluster(uint64_t place) const;
  void read_packed(std::span<const Packed> pieces) const;
  /// Whether an answer may rest on the extent as well.
  [[nodiscard]] bool affords(const Extent& extent, Effort& effort) const;
  void read_below(std::span<std::byte> buffer, uint64_t offset) const;
  void read_plain(std::span<std::byte> buffer, uint64_t offset, uint64_t place) const;

  const Files files_;
  const unsigned cluster_bits_;
  const BaseContent* backing_ = nullptr;
};

}  // namespace cowfs
