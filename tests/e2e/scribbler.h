#pragma once

#include <fcntl.h>
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

#include "tests/e2e/data.h"

namespace cowfs::e2e {

// Makes an image again and again and writes single sectors to it, each twice, so that their chunks
// are copied from the base, and a write that is done again too late undoes another. Then it
// compares all of the image.
class Scribbler {
 public:
  Scribbler(Path image, Bytes base) : image_(std::move(image)), base_(std::move(base)) {
    thread_ = std::thread([this] {
      try {
        while (!stop_) Round();
      } catch (const std::exception& error) {
        complaint_ = error.what();
      }
    });
  }
  ~Scribbler() {
    if (thread_.joinable()) Stop();
  }
  void Stop() {
    stop_ = true;
    thread_.join();
  }
  // After Stop.
  const std::string& complaint() const { return complaint_; }
  uint64_t rounds() const { return rounds_; }

 private:
  static constexpr size_t kSector = 512;

  static void Expect(bool right, const char* what) {
    if (!right) throw std::runtime_error(std::string(what) + ": " + strerror(errno));
  }
  void Round() {
    Bytes expected = base_;
    {
      const File file(image_, O_RDWR | O_CREAT | O_DIRECT);
      const DirectBuffer buffer(kSector);
      for (int i = 0; i < 64 && !stop_; ++i) {
        const uint64_t at = random_() % (expected.size() / kSector) * kSector;
        for (int time = 0; time < 2; ++time) {
          const Bytes bytes = RandomBytes(kSector, ++number_);
          bytes.copy(buffer.data(), kSector);
          Expect(pwrite(file.fd(), buffer.data(), kSector, static_cast<off_t>(at)) == kSector,
                 "write");
          expected.replace(at, kSector, bytes);
        }
      }
      Expect(file.Read(0, expected.size()) == expected, "the image is wrong");
    }
    Expect(unlink(image_.c_str()) == 0, "unlink");
    ++rounds_;
  }

  const Path image_;
  const Bytes base_;
  uint32_t number_ = 0;
  std::mt19937 random_{7};
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> rounds_ = 0;
  std::string complaint_;
  std::thread thread_;
};

}  // namespace cowfs::e2e
