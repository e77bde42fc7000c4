#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

// Makes small images of QEMU's formats by hand, for tests that need none of its programs, or an
// image that those would not make. They have no refcounts, which a reader does not look at.
namespace cowfs::test {

/// What a cluster of a made image is.
struct MadeCluster {
  enum class Kind { plain, packed, zero };
  Kind kind = Kind::plain;
  std::vector<std::byte> bytes = {};  ///< filled up with zeros to a cluster
  uint64_t subclusters = 0xffffffff;  ///< with extended L2 entries: the bitmap
};

struct MadeQcow2 {
  unsigned version = 3;
  unsigned cluster_bits = 9;
  uint64_t size = 0;
  bool extended_l2 = false;
  bool zstd = false;
  std::string backing = {};
  std::string backing_format = {};
  std::map<uint64_t, MadeCluster> clusters = {};  ///< by number

  struct Snapshot {
    std::string id;
    std::string name;
  };
  std::vector<Snapshot> snapshots = {};  ///< of the disk as it is

  /// The file.
  [[nodiscard]] std::vector<std::byte> file() const;
};

struct MadeQcow1 {
  unsigned cluster_bits = 9;
  unsigned l2_bits = 6;
  uint64_t size = 0;
  std::string backing = {};
  std::map<uint64_t, MadeCluster> clusters = {};  ///< by number; none of zeros

  [[nodiscard]] std::vector<std::byte> file() const;
};

}  // namespace cowfs::test
