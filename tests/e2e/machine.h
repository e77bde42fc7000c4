#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <random>
#include <string>
#include <vector>

#include "tests/e2e/data.h"
#include "tests/e2e/load.h"

namespace cowfs::e2e {

// Writes each block of a device or file again and again, and reads back what it wrote before.
class Machine {
 public:
  Machine(const Path& file, uint64_t blocks, int flags)
      : path_(file), file_(file, O_RDWR | flags), written_(blocks) {}
  // Stops it: it has to have gone well, at least so often, and the file holds what was written.
  void ExpectGoodEnd(uint64_t rounds = 1) {
    e2e::ExpectGoodEnd(load_, rounds);
    file_.Close();
    const File file(path_, O_RDONLY);
    for (uint64_t i = 0; i < written_.size(); ++i) {
      if (written_[i] != 0) {
        EXPECT_TRUE(Same(Block(i, written_[i]), file.Read(i * kBlock, kBlock))) << i;
      }
    }
  }

 private:
  static constexpr uint64_t kBlock = 64 * kKiB;
  static Bytes Block(uint64_t block, uint32_t number) {
    return RandomBytes(kBlock, number + static_cast<uint32_t>(block) * 1'000'003);
  }

  void Round() {
    const uint64_t block = random_() % written_.size();
    const auto at = static_cast<off_t>(block * kBlock);
    if (written_[block] != 0) {
      Demand(pread(file_.fd(), buffer_.data(), kBlock, at) == static_cast<ssize_t>(kBlock), "read");
      Demand(Bytes(buffer_.data(), kBlock) == Block(block, written_[block]),
             "wrong bytes in block " + std::to_string(block));
    }
    const Bytes bytes = Block(block, ++number_);
    bytes.copy(buffer_.data(), kBlock);
    Demand(pwrite(file_.fd(), buffer_.data(), kBlock, at) == static_cast<ssize_t>(kBlock), "write");
    written_[block] = number_;
    if (number_ % 16 == 0) Demand(fdatasync(file_.fd()) == 0, "sync");
  }

  const Path path_;
  File file_;
  const DirectBuffer buffer_{kBlock};
  std::mt19937 random_{1};
  uint32_t number_ = 0;
  std::vector<uint32_t> written_;
  Load load_{[this] { Round(); }};
};

}  // namespace cowfs::e2e
