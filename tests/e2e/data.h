#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdint>
#include <string>

#include "tests/e2e/command.h"

namespace cowfs::e2e {

using Bytes = std::string;

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kGiB = 1024 * kMiB;

// An open file. What fails throws with errno, short counts included; calls whose failure is what is
// tested are made on fd().
class File {
 public:
  File() = default;
  explicit File(const Path& path, int flags = O_RDWR, mode_t mode = 0644);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  int fd() const { return fd_; }
  void Close();
  void Write(uint64_t offset, const Bytes& bytes) const;
  // Fewer bytes than asked for only at the end of the file.
  Bytes Read(uint64_t offset, uint64_t length) const;
  Bytes ReadAll() const { return Read(0, Size()); }
  void Sync() const;
  void Truncate(uint64_t size) const;
  void Allocate(int mode, uint64_t offset, uint64_t length) const;  // fallocate(2)
  // Puts the kernel's pages of the file out of the cache (clean ones, so it syncs first).
  void DropPages() const;
  struct stat Stat() const;
  uint64_t Size() const { return static_cast<uint64_t>(Stat().st_size); }
  uint64_t AllocatedBytes() const { return static_cast<uint64_t>(Stat().st_blocks) * 512; }

 private:
  int fd_ = -1;
};

// A buffer for O_DIRECT, with fixed contents.
class DirectBuffer {
 public:
  explicit DirectBuffer(uint64_t size);
  DirectBuffer(const DirectBuffer&) = delete;
  DirectBuffer& operator=(const DirectBuffer&) = delete;
  ~DirectBuffer();
  char* data() const { return data_; }

 private:
  char* data_;
};

// Bytes that look like nothing else: the same for the same size and seed, and never a run of zeros.
Bytes RandomBytes(uint64_t size, uint32_t seed);
Bytes Zeros(uint64_t size);

Bytes ReadFile(const Path& path);
// Makes or replaces the file (O_TRUNC), synced.
void WriteFile(const Path& path, const Bytes& bytes);
// The same with a hole for every run of 4 KiB of zeros.
void WriteSparseFile(const Path& path, const Bytes& bytes);

struct stat StatOf(const Path& path);
uint64_t AllocatedBytes(const Path& path);
std::string Sha256(const Path& path);

// Two byte strings that must be the same; names the first offset at which they are not.
testing::AssertionResult Same(const Bytes& expected, const Bytes& actual);
// Bytes taken on the host are what was expected, and at most a little more: host file systems count
// blocks of their own bookkeeping (ext4's extent trees) as the file's.
testing::AssertionResult Takes(uint64_t expected, uint64_t actual);
testing::AssertionResult Holds(const Path& file, const Bytes& expected);
// Has text in it; shows both when not.
testing::AssertionResult Mentions(const std::string& text, const std::string& part);

// Everything in a tree as text: paths, kinds, modes, owners, sizes, times and content, but access
// times and what stands in a store's lock. Does not enter what is mounted in it.
std::string TreeSnapshot(const Path& root);

// A raw image with an ext4 in it, made by mkfs.ext4 -d from the tree.
void MakeExt4Image(const Path& image, uint64_t size, const Path& tree);
// A raw image, sparse, with an empty XFS in it.
void MakeXfsImage(const Path& image, uint64_t size);
// A small tree with some files and folders, for MakeExt4Image.
void MakeTree(const Path& root);

}  // namespace cowfs::e2e
