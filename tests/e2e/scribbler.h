#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <random>
#include <utility>

#include "tests/e2e/data.h"
#include "tests/e2e/load.h"

namespace cowfs::e2e {

// Makes an image again and again and writes single sectors to it, each twice, so that their chunks
// are copied from the base, and a write that is done again too late undoes another. Then it
// compares all of the image.
class Scribbler {
 public:
  Scribbler(Path image, Bytes base) : image_(std::move(image)), base_(std::move(base)) {}
  Load& load() { return load_; }

 private:
  static constexpr size_t kSector = 512;

  void Round() {
    Bytes expected = base_;
    {
      const File file(image_, O_RDWR | O_CREAT | O_DIRECT);
      const DirectBuffer buffer(kSector);
      for (int i = 0; i < 64 && !load_.stopping(); ++i) {
        const uint64_t at = random_() % (expected.size() / kSector) * kSector;
        for (int time = 0; time < 2; ++time) {
          const Bytes bytes = RandomBytes(kSector, ++number_);
          bytes.copy(buffer.data(), kSector);
          Demand(pwrite(file.fd(), buffer.data(), kSector, static_cast<off_t>(at)) == kSector,
                 "write");
          expected.replace(at, kSector, bytes);
        }
      }
      Demand(file.Read(0, expected.size()) == expected, "the image is wrong");
    }
    Demand(unlink(image_.c_str()) == 0, "unlink");
  }

  const Path image_;
  const Bytes base_;
  uint32_t number_ = 0;
  std::mt19937 random_{7};
  Load load_{[this] { Round(); }};
};

}  // namespace cowfs::e2e
