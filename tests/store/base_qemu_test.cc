// Images made by QEMU's own programs, compared byte for byte with what `qemu-img convert` makes of
// them.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "store/base.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

class QemuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_qemu()) GTEST_SKIP() << "qemu-img and qemu-io are not installed (qemu-utils)";
  }

  /// A command in the directory; fails the test if it fails.
  void run(const std::string& command) const {
    const std::string line = "cd '" + directory_.path() + "' && { " + command + "; } >log 2>&1";
    const int status = std::system(line.c_str());
    const Bytes log = read_file(directory_ / "log");
    ASSERT_EQ(status, 0) << command << "\n"
                         << std::string(reinterpret_cast<const char*>(log.data()), log.size());
  }
  /// Makes source.raw: runs of random, repeated and zero bytes of odd lengths.
  void make_source(size_t size) const {
    std::mt19937_64 random(size);
    Bytes bytes(size);
    for (size_t at = 0; at < size;) {
      const size_t length = std::min<size_t>(size - at, 1 + random() % 200'000);
      const uint64_t kind = random() % 3;
      for (size_t i = 0; i < length && kind > 0; ++i) {
        bytes[at + i] = static_cast<std::byte>(kind == 1 ? random() : i % 61);
      }
      at += length;
    }
    write_file(directory_ / "source.raw", bytes);
  }
  [[nodiscard]] Base open(const std::string& name, const std::string& snapshot = {}) const {
    BaseOptions options;
    options.find_formats = true;
    if (!snapshot.empty()) options.snapshot = snapshot;
    return Base(directory_ / name, options);
  }
  /// Reads in pieces of random sizes, and looks that holes are zeros.
  void expect_same(const Base& base, const Bytes& want) const {
    ASSERT_EQ(base.size(), want.size());
    std::mt19937_64 random(want.size());
    for (size_t at = 0; at < want.size();) {
      Bytes piece(std::min<size_t>(want.size() - at, 1 + random() % 300'000));
      base.read(piece, at);
      ASSERT_TRUE(
          std::equal(piece.begin(), piece.end(), want.begin() + static_cast<std::ptrdiff_t>(at)))
          << "at " << at;
      at += piece.size();
    }
    for (uint64_t at = 0; at < base.size();) {
      const uint64_t hole = base.next_hole(at, base.size());
      const uint64_t data = base.next_data(hole, base.size()).value_or(base.size());
      ASSERT_TRUE(std::all_of(want.begin() + static_cast<std::ptrdiff_t>(hole),
                              want.begin() + static_cast<std::ptrdiff_t>(data),
                              [](std::byte byte) { return byte == std::byte{0}; }));
      ASSERT_TRUE(data > at || hole > at);
      at = data;
    }
  }
  void expect_same(const std::string& name) const {
    run("qemu-img convert -O raw " + name + " want.raw");
    expect_same(open(name), read_file(directory_ / "want.raw"));
  }

  TempDir directory_;
};

struct Made {
  const char* name;
  const char* options;  // of qemu-img convert
  size_t size = 7 << 20;
};

class QemuMatrixTest : public QemuTest, public ::testing::WithParamInterface<Made> {};

TEST_P(QemuMatrixTest, ReadsAsQemuReadsIt) {
  make_source(GetParam().size);
  run(std::string("qemu-img convert ") + GetParam().options + " source.raw image");
  const Bytes want = read_file(directory_ / "source.raw");
  Bytes rounded = want;
  rounded.resize((want.size() + 511) / 512 * 512);  // QEMU's sizes are whole sectors
  expect_same(open("image"), rounded);
}

constexpr size_t kOdd = (5 << 20) + 1536 + 77;

INSTANTIATE_TEST_SUITE_P(
    Images, QemuMatrixTest,
    ::testing::Values(
        Made{"V2", "-O qcow2 -o compat=0.10"}, Made{"V3", "-O qcow2"},
        Made{"V2Odd", "-O qcow2 -o compat=0.10", kOdd}, Made{"V3Odd", "-O qcow2", kOdd},
        Made{"V3Clusters512", "-O qcow2 -o cluster_size=512", 2 << 20},
        Made{"V3Clusters4K", "-O qcow2 -o cluster_size=4096"},
        Made{"V3Clusters2M", "-O qcow2 -o cluster_size=2M", kOdd},
        Made{"V2Zlib", "-c -O qcow2 -o compat=0.10", kOdd}, Made{"V3Zlib", "-c -O qcow2", kOdd},
        Made{"V3Zlib512", "-c -O qcow2 -o cluster_size=512", 1 << 20},
        Made{"V3Zlib4K", "-c -O qcow2 -o cluster_size=4096", kOdd},
        Made{"V3Zlib2M", "-c -O qcow2 -o cluster_size=2M", kOdd},
        Made{"Zstd", "-c -O qcow2 -o compression_type=zstd", kOdd},
        Made{"Zstd4K", "-c -O qcow2 -o compression_type=zstd,cluster_size=4096", kOdd},
        Made{"Zstd2M", "-c -O qcow2 -o compression_type=zstd,cluster_size=2M", kOdd},
        Made{"Extended16K", "-O qcow2 -o extended_l2=on,cluster_size=16k", kOdd},
        Made{"Extended64K", "-O qcow2 -o extended_l2=on", kOdd},
        Made{"Extended2M", "-O qcow2 -o extended_l2=on,cluster_size=2M", kOdd},
        Made{"ExtendedZlib", "-c -O qcow2 -o extended_l2=on", kOdd},
        Made{"ExtendedZstd", "-c -O qcow2 -o extended_l2=on,compression_type=zstd", kOdd},
        Made{"Preallocated", "-O qcow2 -o preallocation=metadata", kOdd},
        Made{"NarrowRefcounts", "-O qcow2 -o refcount_bits=1"},
        Made{"WideRefcounts", "-O qcow2 -o refcount_bits=64"}, Made{"Qcow1", "-O qcow"},
        Made{"Qcow1Odd", "-O qcow", kOdd}),
    [](const ::testing::TestParamInfo<Made>& made) { return std::string(made.param.name); });

TEST_F(QemuTest, Qcow1CompressedReadsAsQemuReadsIt) {
  make_source(4 << 20);
  // QEMU 7.2 writes all of it, and ends with status 1.
  run("qemu-img convert -c -O qcow source.raw image || true");
  expect_same(open("image"), read_file(directory_ / "source.raw"));
}

TEST_F(QemuTest, AChainReadsAsQemuReadsIt) {
  make_source(6 << 20);
  run("qemu-img convert -c -O qcow2 source.raw a.qcow2");
  run("qemu-img create -q -f qcow -b a.qcow2 -F qcow2 b.qcow");
  run("qemu-io -c 'write -P 3 1M 70k' b.qcow");
  run("qemu-img create -q -f qcow2 -o cluster_size=4k -b b.qcow -F qcow c.qcow2 9M");
  run("qemu-io -c 'write -P 4 2M 70k' -c 'write -z 3M 500k' -c 'discard 0 64k' -c 'write -P 5 8M "
      "3k' c.qcow2");
  run("qemu-img create -q -f qcow2 -o extended_l2=on -b c.qcow2 -F qcow2 d.qcow2 12M");
  run("qemu-io -c 'write -P 6 2100k 3k' -c 'write -z 4M 2k' -c 'write -z -u 5M 128k' d.qcow2");
  for (const char* name : {"b.qcow", "c.qcow2", "d.qcow2"}) expect_same(name);
  EXPECT_EQ(open("d.qcow2").files().size(), 4U);
}

TEST_F(QemuTest, ARawBackingFileReadsAsQemuReadsIt) {
  make_source(3 << 20);
  run("qemu-img create -q -f qcow2 -b source.raw -F raw top.qcow2 5M");
  run("qemu-io -c 'write -P 1 1000k 10k' top.qcow2");
  expect_same("top.qcow2");
}

TEST_F(QemuTest, SnapshotsReadAsQemuReadsThem) {
  make_source(6 << 20);
  run("qemu-img convert -O qcow2 source.raw s.qcow2");
  run("qemu-img snapshot -c one s.qcow2");
  run("qemu-io -c 'write -P 7 0 3M' s.qcow2 && qemu-img resize -q s.qcow2 8M");
  run("qemu-img snapshot -c two s.qcow2");
  run("qemu-io -c 'write -P 8 5M 3M' s.qcow2");
  expect_same("s.qcow2");
  run("qemu-img convert -l snapshot.name=two -O raw s.qcow2 want.raw");
  expect_same(open("s.qcow2", "two"), read_file(directory_ / "want.raw"));
  expect_same(open("s.qcow2", "one"), read_file(directory_ / "source.raw"));
}

TEST_F(QemuTest, ADirtyImageIsRead) {
  make_source(2 << 20);
  run("qemu-img convert -O qcow2 -o lazy_refcounts=on source.raw image");
  run("qemu-io -c 'write -P 9 64k 64k' -c abort image || true");
  run("qemu-img info image");
  Bytes want = read_file(directory_ / "source.raw");
  std::fill_n(want.begin() + 65536, 65536, std::byte{9});
  expect_same(open("image"), want);
}

TEST_F(QemuTest, WhatQemuEncryptsOrSplitsIsRefusedByName) {
  const auto expect = [&](const std::string& words) {
    const Error error = error_of([&] { const Base base = open("image"); });
    EXPECT_EQ(error.code(), EOPNOTSUPP);
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  };
  const std::string encrypted = "qemu-img create -q --object secret,id=s,data=x -f qcow2 -o ";
  // QEMU measures how fast it derives a key, and gives up where the clock was too coarse for that.
  run("for i in $(seq 50); do " + encrypted +
      "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 image 1M && exit 0; done; "
      "false");
  expect("LUKS");
  run(encrypted + "encrypt.format=aes,encrypt.key-secret=s image 1M");
  expect("AES");
  run("qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on image 1M");
  expect("external data file");
}

}  // namespace
}  // namespace cowfs::test
