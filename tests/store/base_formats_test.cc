// What a reader of QEMU's formats has to get right, on images made by hand.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spdlog/logger.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <thread>

#include "store/base_verdict.h"
#include "store/qcow2_format.h"
#include "tests/store/image_maker.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

namespace fs = std::filesystem;
using Kind = MadeCluster::Kind;

/// How a base is opened for a new store.
BaseOptions making() {
  BaseOptions options;
  options.find_formats = true;
  return options;
}

Bytes all_of(const Base& base) {
  Bytes bytes(base.size());
  base.read(bytes, 0);
  return bytes;
}

void put_number(Bytes& file, size_t offset, uint64_t number, size_t width = 8) {
  for (size_t i = 0; i < width; ++i) {
    file[offset + i] = static_cast<std::byte>(number >> 8 * (width - 1 - i));
  }
}

/// The same one `count` times.
void put_numbers(Bytes& file, size_t offset, size_t count, uint64_t number) {
  put_number(file, offset, number);
  for (size_t done = 1; done < count; done += std::min(done, count - done)) {
    std::memcpy(&file[offset + done * 8], &file[offset], std::min(done, count - done) * 8);
  }
}

class BaseFormatsTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::string path() const { return directory_ / "base.qcow2"; }
  [[nodiscard]] Base open(const Bytes& file, const BaseOptions& options = making()) const {
    write_file(path(), file);
    return Base(path(), options);
  }
  /// What is said of a base that cannot be opened.
  [[nodiscard]] Error refusal(const Bytes& file, const BaseOptions& options = making()) const {
    write_file(path(), file);
    const Error error = error_of([&] { const Base base(path(), options); });
    EXPECT_EQ(std::string(error.what()).find("base " + path() + ": "), 0U) << error.what();
    return error;
  }
  void expect_refusal(const Bytes& file, int code, const std::string& words,
                      const BaseOptions& options = making()) const {
    const Error error = refusal(file, options);
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
  [[nodiscard]] std::string beside(const std::string& name, const Bytes& file) const {
    write_file(directory_ / name, file);
    return directory_ / name;
  }

  /// Clusters of each kind, and what the disk then holds over `below`.
  [[nodiscard]] static std::map<uint64_t, MadeCluster> mixed(uint64_t cluster, bool zeros = true) {
    std::map<uint64_t, MadeCluster> clusters{
        {0, {.kind = Kind::plain, .bytes = pattern(1, cluster)}},
        {1, {.kind = Kind::plain, .bytes = pattern(2, cluster)}},
        {3, {.kind = Kind::packed, .bytes = filled(cluster, 5)}},
        {4, {.kind = Kind::packed, .bytes = pattern(3, cluster / 2)}},
        {70, {.kind = Kind::plain, .bytes = pattern(4, cluster)}},
        {71, {.kind = Kind::packed, .bytes = pattern(5, cluster / 3)}}};
    if (zeros) clusters[2] = {.kind = Kind::zero};
    return clusters;
  }
  static Bytes laid_over(Bytes below, const std::map<uint64_t, MadeCluster>& clusters,
                         uint64_t cluster) {
    for (const auto& [number, made] : clusters) {
      for (uint64_t i = 0; i < cluster && number * cluster + i < below.size(); ++i) {
        below[number * cluster + i] = i < made.bytes.size() ? made.bytes[i] : std::byte{0};
      }
    }
    return below;
  }

  TempDir directory_;
};

TEST_F(BaseFormatsTest, FormatsThatAreNotReadAreKnownByTheirFirstBytes) {
  const auto guess = [&](size_t at, std::string_view mark) {
    Bytes bytes(4096);
    std::memcpy(&bytes[at], mark.data(), mark.size());
    write_file(path(), bytes);
    const auto found = guess_unread_format(File(path(), O_RDONLY));
    return found ? std::string(found->what) : "";
  };
  EXPECT_EQ(guess(0, "KDMV"), "a VMDK image");
  EXPECT_EQ(guess(0, "# Disk DescriptorFile\nversion=1"), "a VMDK image");
  EXPECT_EQ(guess(64, "\x7f\x10\xda\xbe"), "") << "it is little-endian";
  EXPECT_EQ(guess(64, "\xbe\xda\x10\x7f"), "a VDI image");
  EXPECT_EQ(guess(0, "\x7f\x10\xda\xbe"), "");
  EXPECT_EQ(guess(0, "vhdxfile"), "a VHDX image");
  EXPECT_EQ(guess(0, "conectix"), "a VHD image");
  EXPECT_EQ(guess(0, "QED"), "a QED image");
  EXPECT_EQ(guess(0, "QEDx"), "");
  EXPECT_EQ(guess(0, "\x1f\x8b\x08"), "a file packed by gzip");
  EXPECT_EQ(guess(0, "\xfd\x37zXZ"), "a file packed by xz");
  EXPECT_EQ(guess(0, "\x28\xb5\x2f\xfd"), "a file packed by zstd");
  EXPECT_EQ(guess(0, "BZh91AY&SY"), "a file packed by bzip2");
  EXPECT_EQ(guess(0, ""), "");
  write_file(path(), filled(3, 'K'));
  EXPECT_FALSE(guess_unread_format(File(path(), O_RDONLY)));
}

TEST_F(BaseFormatsTest, Qcow2IsReadAtEveryOffsetAndLength) {
  const MadeQcow2 made{.size = 40'000, .clusters = mixed(512)};
  const Base base = open(made.file());
  EXPECT_EQ(base.format(), BaseFormat::qcow2);
  ASSERT_EQ(base.size(), 40'000U);
  const Bytes want = laid_over(Bytes(40'000), made.clusters, 512);
  EXPECT_EQ(all_of(base), want);
  for (size_t at = 0; at < want.size(); at += 331) {
    for (const size_t length : {1UL, 511UL, 513UL, 3000UL}) {
      Bytes part(std::min(length, want.size() - at));
      base.read(part, at);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), want.begin() + static_cast<ssize_t>(at)))
          << at << " " << length;
    }
  }
}

TEST_F(BaseFormatsTest, Version2AndEveryClusterSizeAreRead) {
  for (unsigned bits = 9; bits <= 21; ++bits) {
    MadeQcow2 made{.version = 2, .cluster_bits = bits, .size = (uint64_t{72} << bits) - 100};
    made.clusters = mixed(uint64_t{1} << bits, false);
    const Base base = open(made.file());
    EXPECT_EQ(all_of(base), laid_over(Bytes(made.size), made.clusters, uint64_t{1} << bits))
        << bits;
  }
}

TEST_F(BaseFormatsTest, ZstdIsRead) {
  const MadeQcow2 made{.size = 40'000, .zstd = true, .clusters = mixed(512)};
  EXPECT_EQ(all_of(open(made.file())), laid_over(Bytes(40'000), made.clusters, 512));
}

TEST_F(BaseFormatsTest, Qcow1IsRead) {
  const MadeQcow1 made{.size = 40'000, .clusters = mixed(512, false)};
  const Base base = open(made.file());
  EXPECT_EQ(base.format(), BaseFormat::qcow);
  EXPECT_EQ(all_of(base), laid_over(Bytes(40'000), made.clusters, 512));
}

TEST_F(BaseFormatsTest, SubclustersAreRead) {
  constexpr uint64_t kCluster = 16384;
  constexpr uint64_t kPart = kCluster / 32;
  write_file(directory_ / "below", pattern(9, 3 * kCluster));
  const MadeQcow2 made{.cluster_bits = 14,
                       .size = 3 * kCluster,
                       .extended_l2 = true,
                       .backing = "below",
                       .backing_format = "raw",
                       .clusters = {{0, {.bytes = pattern(1, kCluster), .subclusters = 0x80000005}},
                                    {1, {.kind = Kind::zero, .subclusters = 0x6}},
                                    {2, {.kind = Kind::packed, .bytes = filled(kCluster, 3)}}}};
  const Base base = open(made.file());
  Bytes want = pattern(9, 3 * kCluster);
  const Bytes own = pattern(1, kCluster);
  for (const uint64_t part : {0U, 2U, 31U}) {
    std::copy_n(own.begin() + static_cast<ssize_t>(part * kPart), kPart,
                want.begin() + static_cast<ssize_t>(part * kPart));
  }
  std::fill_n(want.begin() + kCluster + kPart, 2 * kPart, std::byte{0});
  std::fill_n(want.begin() + 2 * kCluster, kCluster, std::byte{3});
  EXPECT_EQ(all_of(base), want);
  EXPECT_EQ(base.next_hole(kCluster, base.size()), kCluster + kPart);
  EXPECT_EQ(base.next_data(kCluster + kPart, base.size()), kCluster + 3 * kPart);
}

TEST_F(BaseFormatsTest, HolesAreThoseOfTheMap) {
  const MadeQcow2 made{.size = 40'000, .clusters = mixed(512)};
  const Base base = open(made.file());
  EXPECT_EQ(base.next_data(0, 40'000), 0U);
  EXPECT_EQ(base.next_hole(0, 40'000), 1024U);
  EXPECT_EQ(base.next_data(1024, 40'000), 1536U);
  EXPECT_EQ(base.next_hole(1600, 40'000), 2560U);
  EXPECT_EQ(base.next_data(2560, 40'000), 70U * 512);
  EXPECT_EQ(base.next_data(2560, 30'000), std::nullopt);
  EXPECT_EQ(base.next_hole(70 * 512, 36'000), 36'000U);
  EXPECT_EQ(base.next_data(72 * 512, 40'000), std::nullopt);
}

TEST_F(BaseFormatsTest, HolesBelowShowThrough) {
  Bytes below(20'480, std::byte{1});
  write_file(directory_ / "below", below);
  ASSERT_EQ(::truncate((directory_ / "below").c_str(), 65536), 0);
  const MadeQcow2 made{.size = 100'000,
                       .backing = "below",
                       .backing_format = "raw",
                       .clusters = {{10, {.kind = Kind::zero}}, {150, {.bytes = filled(512, 2)}}}};
  const Base base = open(made.file());
  EXPECT_EQ(base.next_hole(0, 100'000), 5120U);
  EXPECT_EQ(base.next_data(5120, 100'000), 5632U);
  EXPECT_EQ(base.next_hole(5632, 100'000), 20'480U);
  EXPECT_EQ(base.next_data(20'480, 100'000), 76'800U);
  EXPECT_EQ(base.next_data(77'312, 100'000), std::nullopt);
}

TEST_F(BaseFormatsTest, AMapTooLongToBeLookedThroughCountsAsData) {
  // Every L1 entry leads to one L2 table, in which all clusters are of zeros.
  MadeQcow2 made{.cluster_bits = 16, .size = uint64_t{1} << 50, .clusters = {}};
  Bytes file = made.file();
  const size_t table = file.size();
  file.resize(table + 65536);
  put_numbers(file, table, 65536 / 8, 1);
  put_numbers(file, 65536, 1U << 21, table);
  const Base base = open(file);
  // It would take hours to look through all of it.
  const std::optional<uint64_t> data = base.next_data(0, base.size());
  ASSERT_TRUE(data);
  EXPECT_GT(*data, uint64_t{1} << 40);
  EXPECT_EQ(base.next_hole(0, base.size()), 0U);
}

TEST_F(BaseFormatsTest, ASnapshotIsFoundByNameAndThenById) {
  MadeQcow2 made{.size = 5000,
                 .clusters = {{0, {.bytes = filled(512, 1)}}},
                 .snapshots = {{"1", "2"}, {"2", "clean"}, {"3", "twice"}, {"4", "twice"}}};
  const Bytes file = made.file();
  for (const char* name : {"clean", "2", "1"}) {
    BaseOptions options = making();
    options.snapshot = name;
    const Base base = open(file, options);
    EXPECT_EQ(base.size(), 5000U);
    EXPECT_EQ(base.identity().snapshot, name);
  }
  BaseOptions options = making();
  options.snapshot = "twice";
  expect_refusal(file, EINVAL, "several snapshots", options);
  options.snapshot = "other";
  expect_refusal(file, ENOENT, "no snapshot 'other'", options);
  write_file(directory_ / "raw", pattern(1, 5000));
  options.format = BaseFormat::raw;
  expect_refusal(pattern(1, 5000), EINVAL, "no snapshots", options);
}

// ---- what is cached ----------------------------------------------------------------------------

TEST_F(BaseFormatsTest, CachedIsWhatNeedsNeitherStorageNorDecompression) {
  const MadeQcow2 made{.size = 4096,
                       .clusters = {{0, {.kind = Kind::zero}},
                                    {1, {.kind = Kind::packed, .bytes = filled(512, 5)}}}};
  const Base base = open(made.file());
  Bytes buffer(4096);
  EXPECT_EQ(base.read_cached(buffer, 0), 0U) << "the map is not there yet";
  base.read(std::span(buffer).first(10), 0);
  EXPECT_EQ(base.read_cached(buffer, 0), 512U);
  base.read(std::span(buffer).first(10), 600);
  EXPECT_EQ(base.read_cached(buffer, 0), 4096U);
  EXPECT_EQ(buffer, laid_over(Bytes(4096), made.clusters, 512));
}

TEST_F(BaseFormatsTest, ReadersOfOneClusterDecompressItOnce) {
  const MadeQcow2 made{.cluster_bits = 21,
                       .size = 2 << 20,
                       .clusters = {{0, {.kind = Kind::packed, .bytes = pattern(1, 1 << 20)}}}};
  write_file(path(), made.file());
  std::atomic<int> reads = 0;
  const FaultHook hook = [&](const std::string&, FileOperation operation, uint64_t offset,
                             uint64_t) {
    if (operation == FileOperation::read && offset >= 3 << 21) ++reads;
    return 0;
  };
  const Base base(path(), making(), &hook);
  std::vector<std::thread> readers;
  for (int i = 0; i < 8; ++i) {
    readers.emplace_back([&] {
      Bytes buffer(4096);
      base.read(buffer, 8192);
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(reads, 1);
}

TEST_F(BaseFormatsTest, NeighboursInTheFileAreOneRead) {
  const MadeQcow2 made{.size = 65536, .clusters = [] {
                         std::map<uint64_t, MadeCluster> clusters;
                         for (uint64_t i = 0; i < 64; ++i) clusters[i] = {.bytes = pattern(i, 512)};
                         return clusters;
                       }()};
  write_file(path(), made.file());
  std::vector<uint64_t> lengths;
  const FaultHook hook = [&](const std::string&, FileOperation operation, uint64_t,
                             uint64_t length) {
    if (operation == FileOperation::read) lengths.push_back(length);
    return 0;
  };
  const Base base(path(), making(), &hook);
  Bytes buffer(64 * 512);
  lengths.clear();
  base.read(buffer, 0);
  EXPECT_EQ(lengths, (std::vector<uint64_t>{512, 64 * 512})) << "the table, and all clusters";
}

TEST_F(BaseFormatsTest, ManyThreadsReadWhatIsThere) {
  MadeQcow2 made{.cluster_bits = 12, .size = 4 << 20};
  for (uint64_t i = 0; i < 1024; ++i) {
    made.clusters[i] = {.kind = i % 3 == 0 ? Kind::packed : Kind::plain,
                        .bytes = pattern(i, i % 3 == 0 ? 1000 : 4096)};
  }
  const Base base = open(made.file());
  const Bytes want = laid_over(Bytes(made.size), made.clusters, 4096);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> readers;
  for (unsigned i = 0; i < 6; ++i) {
    readers.emplace_back([&, i] {
      Bytes buffer(10'000);
      for (size_t n = 0; n < 300; ++n) {
        const size_t at = (n * 7919 + i * 104'729) % (want.size() - buffer.size());
        base.read(buffer, at);
        if (!std::equal(buffer.begin(), buffer.end(), want.begin() + static_cast<ssize_t>(at))) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0);
}

// ---- bad input (I10) ---------------------------------------------------------------------------

class BadImageTest : public BaseFormatsTest {
 protected:
  [[nodiscard]] static Bytes sound() {
    return MadeQcow2{.size = 40'000, .clusters = mixed(512)}.file();
  }
  [[nodiscard]] static Bytes with(size_t offset, uint64_t number, size_t width = 8) {
    Bytes file = sound();
    put_number(file, offset, number, width);
    return file;
  }
  [[nodiscard]] static Bytes feature(unsigned bit) { return with(72, uint64_t{1} << bit); }
  /// Reads all of the disk, which has to fail.
  void expect_broken(const Bytes& file, const std::string& words) const {
    const Base base = open(file);
    const Error error = error_of([&] { all_of(base); });
    EXPECT_EQ(error.code(), EIO);
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
};

TEST_F(BadImageTest, TruncatedHeadersAreRefused) {
  const Bytes file = sound();
  for (size_t length = 8; length < 112; length += 8) {
    expect_refusal(Bytes(file.begin(), file.begin() + static_cast<ssize_t>(length)), EUCLEAN,
                   "damaged");
  }
}

TEST_F(BadImageTest, SizesThatCannotBeAreRefused) {
  expect_refusal(with(20, 8, 4), EUCLEAN, "clusters of 2^8");
  expect_refusal(with(20, 22, 4), EUCLEAN, "clusters of 2^22");
  expect_refusal(with(20, UINT32_MAX, 4), EUCLEAN, "clusters");
  expect_refusal(with(24, INT64_MAX), EOPNOTSUPP, "1 PiB");
  expect_refusal(with(24, UINT64_MAX - 511), EOPNOTSUPP, "1 PiB");
  expect_refusal(with(24, uint64_t{1} << 63), EOPNOTSUPP, "1 PiB");
  expect_refusal(with(24, uint64_t{1} << 50), EUCLEAN, "L1 table has");
  expect_refusal(with(24, 0), EINVAL, "is empty");
  expect_refusal(with(96, 7, 4), EUCLEAN, "refcounts of 2^7");
  expect_refusal(with(100, 96, 4), EUCLEAN, "its own length");
  expect_refusal(with(100, UINT32_MAX, 4), EUCLEAN, "its own length");
}

TEST_F(BadImageTest, AnL1TableOutsideTheFileIsRefused) {
  expect_refusal(with(40, 1 << 30), EUCLEAN, "outside the file");
  expect_refusal(with(40, UINT64_MAX - 511), EUCLEAN, "outside the file");
  expect_refusal(with(40, 0), EUCLEAN, "outside the file");
  expect_refusal(with(40, 513), EUCLEAN, "no cluster begins");
  expect_refusal(with(36, 0, 4), EUCLEAN, "L1 table has 0 entries");
  Bytes large = with(24, uint64_t{1} << 49);
  put_number(large, 36, UINT32_MAX, 4);
  expect_refusal(large, EUCLEAN, "L1 table has");
  put_number(large, 24, uint64_t{200} << 30);
  expect_refusal(large, EOPNOTSUPP, "larger than 32 MiB");
}

TEST_F(BadImageTest, WhatAMapSaysWrongFailsOnlyItsReader) {
  const Bytes file = sound();
  constexpr size_t kL1 = 512;
  constexpr size_t kL2 = 1024 + 512 * 0;
  const auto expect = [&](size_t offset, uint64_t number, const std::string& words) {
    Bytes broken = file;
    put_number(broken, offset, number);
    expect_broken(broken, words);
    Bytes rest(512);
    open(broken).read(rest, 70 * 512);
    EXPECT_EQ(rest, pattern(4, 512));
  };
  const Base base = open(file);
  expect(kL1, uint64_t{1} << 40, "outside the file");
  expect(kL1, 0x00fffffffffffe00, "outside the file");
  expect(kL2, uint64_t{1} << 40, "outside the file");
  expect(kL2, 0x00fffffffffffe00, "outside the file");
  expect(kL2 + 24, uint64_t{1} << 62 | uint64_t{1} << 40, "outside the file");
  expect(kL2 + 24, uint64_t{1} << 62 | 1, "cannot be decompressed");
  expect(kL2 + 24, UINT64_MAX >> 1U, "");
}

TEST_F(BadImageTest, MetadataThatOverlapIsReadAsWhatItIs) {
  // A map that leads to the header, and one that leads to itself.
  Bytes file = with(1024, 0);
  put_number(file, 512, 1024);
  put_number(file, 1024 + 8, 512);
  put_number(file, 1024 + 16, 1024);
  const Base base = open(file);
  Bytes cluster(512);
  base.read(cluster, 512);
  EXPECT_TRUE(std::equal(cluster.begin(), cluster.end(), file.begin() + 512));
  base.read(cluster, 1024);
  EXPECT_TRUE(std::equal(cluster.begin(), cluster.end(), file.begin() + 1024));
}

TEST_F(BadImageTest, ClustersOffTheirGridAreBroken) {
  MadeQcow2 made{.cluster_bits = 12, .size = 40'000, .clusters = {{0, {.bytes = filled(9, 1)}}}};
  Bytes file = made.file();
  put_number(file, 8192, 12288 + 512);
  expect_broken(file, "where none begins");
  file = made.file();
  put_number(file, 4096, 8192 + 512);
  expect_broken(file, "no cluster begins");
}

TEST_F(BadImageTest, ZerosInVersion2AreBroken) {
  MadeQcow2 made{.version = 2, .size = 40'000, .clusters = {{0, {.kind = Kind::zero}}}};
  expect_broken(made.file(), "version 2");
}

TEST_F(BadImageTest, ASubclusterCannotBeTwoThings) {
  MadeQcow2 made{.cluster_bits = 14,
                 .size = 40'000,
                 .extended_l2 = true,
                 .clusters = {{0, {.subclusters = uint64_t{1} << 32 | 1}}}};
  expect_broken(made.file(), "both with data and of zeros");
  put_number(*std::make_unique<Bytes>(made.file()), 20, 12, 4);
  Bytes small = made.file();
  put_number(small, 20, 13, 4);
  expect_refusal(small, EUCLEAN, "under 16 KiB");
}

TEST_F(BadImageTest, BombsFillNoMoreThanTheirCluster) {
  // A stream of 64 KiB of zeros where the cluster has 512 bytes.
  for (const bool zstd : {false, true}) {
    const MadeQcow2 bomb{.cluster_bits = 16,
                         .size = 65536,
                         .zstd = zstd,
                         .clusters = {{0, {.kind = Kind::packed, .bytes = filled(65536, 0)}}}};
    const Bytes large = bomb.file();
    MadeQcow2 made{.size = 40'000, .zstd = zstd};
    made.clusters[0] = {.kind = Kind::packed, .bytes = filled(512, 0)};
    Bytes file = made.file();
    const size_t place = 1536;
    file.resize(place);
    file.insert(file.end(), large.begin() + 3 * 65536, large.end());
    file.resize(place + 1024);
    put_number(file, 1024, uint64_t{1} << 62 | place | uint64_t{1} << 61);
    const Base base = open(file);
    Bytes cluster(512);
    try {
      base.read(cluster, 0);
      EXPECT_EQ(cluster, filled(512, 0));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), EIO);
    }
  }
}

TEST_F(BadImageTest, CompressedDataThatFillLessThanACluster) {
  const MadeQcow2 small{.size = 512,
                        .clusters = {{0, {.kind = Kind::packed, .bytes = filled(512, 7)}}}};
  const MadeQcow2 large{.cluster_bits = 12,
                        .size = 4096,
                        .clusters = {{0, {.kind = Kind::packed, .bytes = filled(4096, 7)}}}};
  const Bytes packed = small.file();
  Bytes file = large.file();
  file.resize(3 * 4096);
  file.insert(file.end(), packed.begin() + 3 * 512, packed.end());
  expect_broken(file, "cannot be decompressed");
}

TEST_F(BadImageTest, FeaturesAreRefusedByName) {
  expect_refusal(feature(1), EOPNOTSUPP, "marked as damaged");
  expect_refusal(feature(2), EOPNOTSUPP, "external data file");
  expect_refusal(feature(3), EUCLEAN, "contradict");
  expect_refusal(feature(63), EOPNOTSUPP, "bit 63, without a name");
  EXPECT_EQ(open(feature(0)).size(), 40'000U) << "dirty is no matter for a reader";
  // With a table of names.
  Bytes file = feature(5);
  put_number(file, 112, qcow2::kFeatureNames, 4);
  put_number(file, 116, 48, 4);
  put_number(file, 120, 0x0005, 2);
  const std::string name = "time travel";
  std::transform(name.begin(), name.end(), file.begin() + 122,
                 [](char c) { return static_cast<std::byte>(c); });
  expect_refusal(file, EOPNOTSUPP, "\"time travel\"");
}

TEST_F(BadImageTest, EncryptionAndUnknownCompressionAreRefused) {
  expect_refusal(with(32, 1, 4), EOPNOTSUPP, "encrypted (AES)");
  expect_refusal(with(32, 2, 4), EOPNOTSUPP, "encrypted (LUKS)");
  expect_refusal(with(32, 99, 4), EOPNOTSUPP, "encrypted");
  Bytes file = feature(3);
  file[104] = std::byte{9};
  expect_refusal(file, EOPNOTSUPP, "type 9");
  expect_refusal(with(4, 4, 4), EOPNOTSUPP, "version 4");
  Bytes qcow1 = MadeQcow1{.size = 5000}.file();
  put_number(qcow1, 36, 1, 4);
  expect_refusal(qcow1, EOPNOTSUPP, "encrypted");
}

TEST_F(BadImageTest, ExtensionsAndUnknownOnesStayWithinTheFirstCluster) {
  Bytes file = sound();
  put_number(file, 112, 0x23852875, 4);  // bitmaps: of no interest
  put_number(file, 116, 24, 4);
  EXPECT_EQ(open(file).size(), 40'000U);
  put_number(file, 116, UINT32_MAX, 4);
  expect_refusal(file, EUCLEAN, "beyond the first cluster");
  put_number(file, 116, 393, 4);
  expect_refusal(file, EUCLEAN, "beyond the first cluster");
}

TEST_F(BadImageTest, SnapshotTablesAreBounded) {
  MadeQcow2 made{.size = 5000, .snapshots = {{"1", "one"}}};
  const Bytes sound = made.file();
  BaseOptions options = making();
  options.snapshot = "one";
  Bytes file = sound;
  put_number(file, 60, UINT32_MAX, 4);
  expect_refusal(file, EUCLEAN, "65536 are the most", options);
  put_number(file, 60, 65536, 4);
  expect_refusal(file, EUCLEAN, "beyond the end", options);
  file = sound;
  put_number(file, 64, UINT64_MAX - 7);
  expect_refusal(file, EUCLEAN, "beyond the end", options);
  file = sound;
  const size_t table = file.size() - (40 + 16 + 4);
  put_number(file, table + 36, UINT32_MAX, 4);
  expect_refusal(file, EUCLEAN, "too long", options);
  file = sound;
  put_number(file, table, 1 << 30);
  expect_refusal(file, EUCLEAN, "L1 table", options);
}

TEST_F(BadImageTest, Qcow1HeadersAreChecked) {
  const Bytes sound = MadeQcow1{.size = 40'000, .clusters = mixed(512, false)}.file();
  const auto with = [&](size_t offset, uint64_t number, size_t width) {
    Bytes file = sound;
    put_number(file, offset, number, width);
    return file;
  };
  expect_refusal(Bytes(sound.begin(), sound.begin() + 40), EUCLEAN, "cut short");
  expect_refusal(with(32, 8, 1), EUCLEAN, "clusters of 2^8");
  expect_refusal(with(32, 17, 1), EUCLEAN, "clusters of 2^17");
  expect_refusal(with(33, 5, 1), EUCLEAN, "L2 tables of 2^5");
  expect_refusal(with(33, 14, 1), EUCLEAN, "L2 tables of 2^14");
  expect_refusal(with(24, INT64_MAX, 8), EOPNOTSUPP, "1 PiB");
  expect_refusal(with(24, uint64_t{1} << 49, 8), EOPNOTSUPP, "32 MiB");
  expect_refusal(with(24, uint64_t{1} << 36, 8), EUCLEAN, "outside the file");
  expect_refusal(with(40, UINT64_MAX, 8), EUCLEAN, "outside the file");
  expect_refusal(with(40, 0, 8), EUCLEAN, "outside the file");
  expect_broken(with(48, uint64_t{1} << 40, 8), "outside the file");
  Bytes file = sound;
  put_number(file, 512, 1);
  expect_broken(file, "where no sector begins");
  put_number(file, 512, UINT64_MAX);
  expect_broken(file, "");
}

TEST_F(BadImageTest, AFileThatHasBecomeShorterIsAnErrorAndNoZeros) {
  const Base base = open(sound());
  ASSERT_EQ(::truncate(path().c_str(), 1536), 0);
  EXPECT_EQ(error_of([&] { all_of(base); }).code(), EIO);
}

TEST_F(BadImageTest, TheLastClusterMayEndWithTheFile) {
  MadeQcow2 made{.cluster_bits = 12, .size = 40'000, .clusters = {{0, {.bytes = filled(4096, 1)}}}};
  Bytes file = made.file();
  file.resize(file.size() - 1000);
  const Base base = open(file);
  Bytes cluster(4096);
  base.read(cluster, 0);
  EXPECT_EQ(cluster[3095], std::byte{1});
  EXPECT_EQ(cluster[3096], std::byte{0});
  Bytes tail(500);
  base.read(tail, 3500);
  EXPECT_EQ(tail, filled(500, 0));
}

}  // namespace
}  // namespace cowfs::test
