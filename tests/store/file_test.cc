#include "store/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>

#include "tests/store/support.h"

namespace cowfs::test {
namespace {

class FileTest : public ::testing::Test {
 protected:
  File open(const FaultHook* hook = nullptr) const {
    return {directory_ / "file", O_RDWR | O_CREAT, 0600, hook};
  }
  TempDir directory_;
};

TEST_F(FileTest, OpenOfMissingFileNamesThePath) {
  const Error error = error_of([&] { const File file(directory_ / "none", O_RDONLY); });
  EXPECT_EQ(error.code(), ENOENT);
  EXPECT_NE(std::string(error.what()).find(directory_ / "none"), std::string::npos);
}

TEST_F(FileTest, ReadStopsAtTheEnd) {
  const File file = open();
  file.write(pattern(1, 1000), 0);
  Bytes buffer(4096);
  EXPECT_EQ(file.read(buffer, 0), 1000U);
  EXPECT_EQ(file.read(buffer, 1000), 0U);
  EXPECT_EQ(file.read(buffer, 999), 1U);
}

TEST_F(FileTest, ReadExactlyNeverMakesUpZeros) {
  const File file = open();
  file.write(pattern(1, 1000), 0);
  Bytes buffer(1001);
  EXPECT_EQ(error_of([&] { file.read_exactly(buffer, 0); }).code(), EIO);
  std::array<iovec, 2> parts{iovec{buffer.data(), 500}, iovec{buffer.data() + 500, 501}};
  EXPECT_EQ(error_of([&] { file.read_vector(parts, 0); }).code(), EIO);
}

TEST_F(FileTest, VectorsLargerThanTheSystemTakesAtOnceAreWhole) {
  const File file = open();
  constexpr size_t kParts = 3000;
  Bytes data = pattern(7, kParts * 5);
  std::vector<iovec> parts;
  for (size_t i = 0; i < kParts; ++i) {
    parts.push_back({data.data() + i * 5, 5});
    if (i % 7 == 0) parts.push_back({nullptr, 0});
  }
  file.write_vector(parts, 11);
  Bytes back(data.size());
  file.read_exactly(back, 11);
  EXPECT_EQ(back, data);

  Bytes again(data.size());
  parts.clear();
  for (size_t i = 0; i < kParts; ++i) parts.push_back({again.data() + i * 5, 5});
  file.read_vector(parts, 11);
  EXPECT_EQ(again, data);
}

TEST_F(FileTest, EmptyVectorsDoNothing) {
  const File file = open();
  std::array<iovec, 2> parts{iovec{nullptr, 0}, iovec{nullptr, 0}};
  file.write_vector(parts, 100);
  file.read_vector(parts, 100);
  EXPECT_EQ(file.size(), 0U);
}

TEST_F(FileTest, PunchedRangeReadsAsZerosAndTheSizeStays) {
  const File file = open();
  file.write(pattern(3, 64 << 10), 0);
  const uint64_t before = allocated(file.path());
  file.punch(16 << 10, 32 << 10);
  EXPECT_EQ(file.size(), 64U << 10);
  EXPECT_LT(allocated(file.path()), before);
  Bytes back(32 << 10);
  file.read_exactly(back, 16 << 10);
  EXPECT_EQ(back, filled(32 << 10, 0));
}

TEST_F(FileTest, AllocateKeepsContentAndCanBePunched) {
  const File file = open();
  const Bytes data = pattern(3, 5000);
  file.write(data, 0);
  file.allocate(0, 1 << 20);
  EXPECT_GE(allocated(file.path()), 1U << 20);
  Bytes back(5000);
  file.read_exactly(back, 0);
  EXPECT_EQ(back, data);
  file.punch(0, 1 << 20);
  EXPECT_EQ(allocated(file.path()), 0U);
}

TEST_F(FileTest, HolesAndDataAreFound) {
  const File file = open();
  file.write(pattern(1, 4096), 1 << 20);
  EXPECT_EQ(file.next_data(0), 1U << 20);
  EXPECT_EQ(file.next_hole(0), 0U);
  EXPECT_EQ(file.next_hole(1 << 20), (1U << 20) + 4096);
  EXPECT_EQ(file.next_data((1 << 20) + 4096), std::nullopt);
}

TEST_F(FileTest, CloneSharesOrChangesNothing) {
  const File source(directory_ / "source", O_RDWR | O_CREAT, 0600);
  source.write(pattern(1, 8192), 0);
  const File target = open();
  target.write(pattern(2, 8192), 0);
  if (target.clone_range(source, 0, 0, 8192)) {
    EXPECT_EQ(read_file(target.path()), pattern(1, 8192));
  } else {
    EXPECT_EQ(read_file(target.path()), pattern(2, 8192));
  }
}

TEST_F(FileTest, OnlyOneDescriptorHasTheLock) {
  const File first = open();
  const File second = open();
  EXPECT_TRUE(first.try_lock());
  EXPECT_FALSE(second.try_lock());
}

TEST_F(FileTest, MovedFileLeavesNothingBehind) {
  File first = open();
  const int fd = first.fd();
  const File second = std::move(first);
  EXPECT_EQ(second.fd(), fd);
}

TEST_F(FileTest, RemovingAMissingFileIsNoError) { remove_file(directory_ / "none"); }

class FileFaultTest : public FileTest, public ::testing::WithParamInterface<FileOperation> {};

TEST_P(FileFaultTest, HookMakesTheOperationFailBeforeAnythingHappens) {
  bool armed = false;
  std::string seen;
  const FaultHook hook = [&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    if (operation != GetParam() || !armed) return 0;
    seen = path;
    return ENOSPC;
  };
  const File file = open(&hook);
  const Bytes data = pattern(1, 8192);
  file.write(data, 0);
  armed = true;
  const Error error = error_of([&] {
    Bytes buffer(8192);
    std::array<iovec, 1> parts{iovec{buffer.data(), buffer.size()}};
    switch (GetParam()) {
      case FileOperation::open:
        static_cast<void>(open(&hook));
        break;
      case FileOperation::read:
        file.read_vector(parts, 0);
        break;
      case FileOperation::read_cached:
        break;  // does not throw: see below
      case FileOperation::write:
        file.write(filled(8192, 0), 0);
        break;
      case FileOperation::sync:
        file.sync_data();
        break;
      case FileOperation::punch:
        file.punch(0, 4096);
        break;
      case FileOperation::allocate:
        file.allocate(0, 1 << 20);
        break;
      case FileOperation::truncate:
        file.truncate(0);
        break;
      case FileOperation::clone:
        static_cast<void>(file.clone_range(file, 0, 4096, 4096));
        break;
      case FileOperation::unlink:
        remove_file(file.path(), &hook);
        break;
    }
  });
  EXPECT_EQ(error.code(), ENOSPC);
  EXPECT_EQ(seen, file.path());
  EXPECT_EQ(read_file(file.path()), data);
}

INSTANTIATE_TEST_SUITE_P(Each, FileFaultTest,
                         ::testing::Values(FileOperation::open, FileOperation::read,
                                           FileOperation::write, FileOperation::sync,
                                           FileOperation::punch, FileOperation::allocate,
                                           FileOperation::truncate, FileOperation::clone,
                                           FileOperation::unlink));

TEST_F(FileTest, HookSaysWhatIsCached) {
  const FaultHook hook = [&](const std::string&, FileOperation operation, uint64_t, uint64_t) {
    return operation == FileOperation::read_cached ? EAGAIN : 0;
  };
  const File file = open(&hook);
  file.write(pattern(1, 4096), 0);
  Bytes buffer(4096);
  EXPECT_EQ(file.read_cached(buffer, 0), 0U);
  EXPECT_EQ(file.read(buffer, 0), 4096U);
}

}  // namespace
}  // namespace cowfs::test
