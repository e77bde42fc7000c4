#pragma once

#include <string>
#include <vector>

#include "store/base_mapped.h"

namespace cowfs {

/// The first qcow, of 2006 (version 1; block/qcow.c in QEMU's sources), read only: what "qcow"
/// meant when dm-cow was to read it.
namespace qcow1 {

struct Header {
  unsigned cluster_bits = 0;
  unsigned l2_bits = 0;  ///< entries in an L2 table, as a power of two
  uint64_t size = 0;     ///< of the disk
  uint64_t l1_offset = 0;
  uint64_t l1_entries = 0;   ///< as many as the disk's size needs
  std::string backing_name;  ///< empty: no backing file
};

/// EINVAL, EUCLEAN or EOPNOTSUPP, beginning with `title`, for one that cannot be read.
Header read_header(const File& file, uint64_t file_length, const std::string& title);

}  // namespace qcow1

class Qcow1Content : public MappedContent {
 public:
  Qcow1Content(Files files, const qcow1::Header& header);

 protected:
  [[nodiscard]] std::optional<Extent> find(uint64_t offset, uint64_t length,
                                           bool wait) const override;
  [[nodiscard]] ByteCache::Bytes unpack(uint64_t place) const override;

 private:
  [[nodiscard]] Extent piece(uint64_t entry, uint64_t offset) const;

  const unsigned l2_bits_;
  std::vector<uint64_t> l1_;
};

}  // namespace cowfs
