#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/e2e/data.h"

namespace cowfs::e2e {

// Writes each block of a device or file again and again, and reads back what it wrote before.
class Machine {
 public:
  Machine(Path file, uint64_t blocks, int flags) : file_(std::move(file)), written_(blocks) {
    thread_ = std::thread([this, flags] { Run(flags); });
  }
  ~Machine() {
    if (thread_.joinable()) {
      Stop();
    }
  }
  void Stop() {
    stop_ = true;
    thread_.join();
  }
  uint64_t rounds() const { return rounds_; }
  const std::string& complaint() const { return complaint_; }
  // What the file has to hold.
  void Check() const {
    const File file(file_, O_RDONLY);
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

  void Run(int flags) {
    try {
      const File file(file_, O_RDWR | flags);
      const DirectBuffer buffer(kBlock);
      std::mt19937 random(1);
      for (uint32_t number = 1; !stop_; ++number) {
        const uint64_t block = random() % written_.size();
        const auto at = static_cast<off_t>(block * kBlock);
        if (written_[block] != 0) {
          if (pread(file.fd(), buffer.data(), kBlock, at) != static_cast<ssize_t>(kBlock)) {
            throw std::runtime_error(std::string("read: ") + strerror(errno));
          }
          if (Bytes(buffer.data(), kBlock) != Block(block, written_[block])) {
            throw std::runtime_error("wrong bytes in block " + std::to_string(block));
          }
        }
        const Bytes bytes = Block(block, number);
        bytes.copy(buffer.data(), kBlock);
        if (pwrite(file.fd(), buffer.data(), kBlock, at) != static_cast<ssize_t>(kBlock)) {
          throw std::runtime_error(std::string("write: ") + strerror(errno));
        }
        written_[block] = number;
        if (number % 16 == 0 && fdatasync(file.fd()) != 0) {
          throw std::runtime_error(std::string("sync: ") + strerror(errno));
        }
        ++rounds_;
      }
    } catch (const std::exception& error) {
      complaint_ = error.what();
    }
  }

  const Path file_;
  std::vector<uint32_t> written_;
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> rounds_ = 0;
  std::string complaint_;
  std::thread thread_;
};

}  // namespace cowfs::e2e
