#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "store/base_chain.h"
#include "store/catalog.h"
#include "store/file.h"

namespace cowfs {

/// The base: the disk in an image file or on a block device, with the backing files that it names,
/// opened read-only and never written (I1). Thread-safe.
class Base {
 public:
  /// Says in its Error what is wrong with `path` if it cannot serve as a base.
  explicit Base(const std::string& path, const BaseOptions& options = {},
                const FaultHook* hook = nullptr);

  /// Absolute.
  [[nodiscard]] const std::string& path() const { return file().path(); }
  /// Bytes of the disk; as it was when the base was opened.
  [[nodiscard]] uint64_t size() const { return content().size(); }
  [[nodiscard]] BaseFormat format() const { return files().front()->format; }
  [[nodiscard]] bool is_device() const { return files().front()->is_device; }

  // Of the disk; see BaseContent. Offsets and ends must lie inside it.

  void read(std::span<std::byte> buffer, uint64_t offset) const { content().read(buffer, offset); }
  [[nodiscard]] size_t read_cached(std::span<std::byte> buffer, uint64_t offset) const {
    return content().read_cached(buffer, offset);
  }
  [[nodiscard]] std::optional<uint64_t> next_data(uint64_t offset, uint64_t end) const;
  [[nodiscard]] uint64_t next_hole(uint64_t offset, uint64_t end) const;

  /// The file itself, and all files, the base first and each one's backing file behind it.
  [[nodiscard]] const File& file() const { return files().front()->file; }
  [[nodiscard]] const std::vector<std::unique_ptr<const BaseFile>>& files() const {
    return chain_.files();
  }

  /// What to record of it, but for the fingerprints, the checksum and who wrote to it: paths,
  /// devices, inodes, sizes and times as they are now.
  [[nodiscard]] BaseRow identity() const;
  /// With the fingerprints.
  [[nodiscard]] BaseRow identity_and_fingerprints() const;

  /// Of the file itself; see fingerprint_of.
  [[nodiscard]] std::vector<std::byte> fingerprint() const;

  /// XXH3-128 over all of the disk. Calls `advance` with the bytes done so far, which may throw.
  [[nodiscard]] std::vector<std::byte> checksum(
      const std::function<void(uint64_t done)>& advance) const;

 private:
  [[nodiscard]] const BaseContent& content() const { return chain_.content(); }

  const BaseChain chain_;
  const std::optional<std::string> snapshot_;
};

/// XXH3-128 over the first and the last MiB of a file and 256 evenly spread pieces of 64 KiB
/// between; over everything where that is not more. Takes time that does not depend on the size.
std::vector<std::byte> fingerprint_of(const BaseFile& file);

/// How to open a base again that is on record.
BaseOptions options_of(const BaseRow& recorded);

}  // namespace cowfs
