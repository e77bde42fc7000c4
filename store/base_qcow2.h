#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "store/base_mapped.h"
#include "store/qcow2_format.h"

namespace cowfs {

/// A qcow2 file, read only. Its L1 table is kept in memory, at most 32 MiB; L2 tables are fetched
/// in pieces. Refcounts are not looked at: they say nothing to a reader.
class Qcow2Content : public MappedContent {
 public:
  /// `snapshot`: the name of an internal one to show instead of the disk as it is; null: the disk.
  Qcow2Content(const Files& files, const qcow2::Header& header, const std::string* snapshot);

 protected:
  [[nodiscard]] std::optional<Extent> find(uint64_t offset, uint64_t length,
                                           bool wait) const override;
  [[nodiscard]] ByteCache::Bytes unpack(uint64_t place) const override;

 private:
  struct View {
    qcow2::Table l1;
    uint64_t size;
  };
  static View view(const Files& files, const qcow2::Header& header, const std::string* snapshot);
  Qcow2Content(Files files, const qcow2::Header& header, const View& view);
  /// What the entry at `entry` says of the disk at `offset`, up to the end of its cluster or
  /// subcluster.
  [[nodiscard]] Extent piece(const std::byte* entry, uint64_t offset) const;
  [[nodiscard]] Extent subcluster(uint64_t entry, uint64_t bitmap, uint64_t offset) const;

  const unsigned version_;
  const unsigned entry_bits_;
  const unsigned l2_bits_;
  const Packing packing_;
  std::vector<uint64_t> l1_;
};

}  // namespace cowfs
