#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace cowfs::crash {

constexpr uint64_t kSector = 512;
constexpr uint64_t kBlock = 4096;

/// A moment of a recorded run: each event has its own, in order.
using Position = uint64_t;
constexpr Position kNever = UINT64_MAX;

/// Files and directories by numbers of our own, which are never used again.
using Inode = uint32_t;
constexpr Inode kRoot = 1;

/// A regular file's bytes, and which blocks of 4 KiB have space below them.
class FileContent {
 public:
  [[nodiscard]] uint64_t size() const { return bytes_.size(); }
  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  [[nodiscard]] bool allocated(uint64_t block) const {
    return block < allocated_.size() && allocated_[block];
  }

  void write(uint64_t offset, std::span<const std::byte> data);
  /// Grows only; what is new reads as zeros.
  void grow(uint64_t size);
  void truncate(uint64_t size);
  void punch(uint64_t offset, uint64_t length);
  void allocate(uint64_t offset, uint64_t length);

 private:
  std::vector<std::byte> bytes_;
  std::vector<bool> allocated_;
};

/// Something that was done to a file or a directory. A write carries the whole sectors that it
/// touched as they were afterwards: a disk writes sectors, and the page cache has one content.
struct Operation {
  enum class Kind { write, punch, truncate, allocate, link, unlink, rename, sync };

  Kind kind;
  Position at = 0;        ///< when it took effect; of a sync: when it began
  Position end = kNever;  ///< of a sync: when it returned
  Inode inode = 0;        ///< the file; of link, unlink and rename the directory
  uint64_t offset = 0;
  uint64_t length = 0;  ///< bytes; of a truncate the new size; of a write what it asked for
  std::vector<std::byte> sectors = {};  ///< of a write, from the sector border below `offset` on
  std::string name = {};                ///< of link, unlink, rename (the new one)
  Inode target = 0;                     ///< what the name leads to
  bool is_directory = false;            ///< the target of a link
  Inode old_directory = 0;              ///< of a rename
  std::string old_name = {};

  [[nodiscard]] std::string text() const;
};

/// Files, directories and their entries, in memory. Copies share the content of files.
class Disk {
 public:
  void apply(const Operation& operation);
  /// A part of it: each piece (a sector of a write, a block of a punch, else the whole) for which
  /// `keep` says so. `whole_size`: a write that grows the file does so in any case.
  template <typename Keep>
  void apply_torn(const Operation& operation, bool whole_size, const Keep& keep);

  [[nodiscard]] const FileContent& file(Inode inode) const { return *files_.at(inode); }
  /// The entries of a directory.
  [[nodiscard]] std::map<std::string, Inode> entries(Inode directory) const;
  [[nodiscard]] bool is_directory(Inode inode) const { return directories_.contains(inode); }
  /// 0 if there is none.
  [[nodiscard]] Inode lookup(Inode directory, const std::string& name) const;

  /// A hash over all paths and what is found there, but for the store's lock.
  [[nodiscard]] uint64_t hash() const;
  /// Makes it all below `path`, an empty directory.
  void materialise(const std::string& path) const;

 private:
  FileContent& change(Inode inode);
  template <typename Visit>
  void walk(Inode directory, const std::string& path, const Visit& visit) const;

  std::map<Inode, std::shared_ptr<FileContent>> files_;
  std::set<Inode> directories_{kRoot};
  std::map<std::pair<Inode, std::string>, Inode> entries_;
};

template <typename Keep>
void Disk::apply_torn(const Operation& operation, bool whole_size, const Keep& keep) {
  if (operation.kind == Operation::Kind::write) {
    FileContent& file = change(operation.inode);
    const uint64_t start = operation.offset / kSector * kSector;
    const uint64_t end = operation.offset + operation.length;
    const std::span<const std::byte> all(operation.sectors);
    for (uint64_t at = 0; at < all.size(); at += kSector) {
      const uint64_t size = std::min<uint64_t>(kSector, all.size() - at);
      if (keep()) file.write(start + at, all.subspan(at, size));
    }
    if (whole_size) file.grow(end);
  } else if (operation.kind == Operation::Kind::punch) {
    FileContent& file = change(operation.inode);
    const uint64_t end = std::min(operation.offset + operation.length, file.size());
    for (uint64_t at = operation.offset; at < end;) {
      const uint64_t next = std::min(end, (at / kBlock + 1) * kBlock);
      if (keep()) file.punch(at, next - at);
      at = next;
    }
  } else if (keep()) {
    apply(operation);
  }
}

}  // namespace cowfs::crash
