#pragma once

#include <algorithm>

#include "store/base_content.h"
#include "store/file.h"

namespace cowfs {

/// A raw image: a file or block device whose bytes are those of the disk.
class RawContent : public BaseContent {
 public:
  /// `file` must outlive it.
  RawContent(const File& file, uint64_t size) : BaseContent(size), file_(file) {}

  void read(std::span<std::byte> buffer, uint64_t offset) const override {
    file_.read_exactly(buffer, offset);
  }
  [[nodiscard]] size_t read_cached(std::span<std::byte> buffer, uint64_t offset) const override {
    return file_.read_cached(buffer, offset);
  }
  [[nodiscard]] std::optional<uint64_t> next_data(uint64_t offset, uint64_t end,
                                                  Effort& /*effort*/) const override {
    const std::optional<uint64_t> data = file_.next_data(offset);
    return data && *data < end ? data : std::nullopt;
  }
  [[nodiscard]] uint64_t next_hole(uint64_t offset, uint64_t end,
                                   Effort& /*effort*/) const override {
    return std::min(end, file_.next_hole(offset));
  }

 private:
  const File& file_;
};

}  // namespace cowfs
