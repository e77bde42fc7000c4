#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "store/base.h"
#include "store/error.h"
#include "tests/fuzz/input.h"

// A base of one of QEMU's formats as a stranger could hand it to us (I10). The input is a list of
// edits of a sound image: of its header, its tables, its bytes, its length. Then it is opened by
// the ordinary code and read here and there. An Error is what is wanted; anything else is a
// finding, and so is a backing file outside the directory.
namespace cowfs::fuzz {

/// A directory of this process, in memory if that can be had.
class ImageScratch {
 public:
  ImageScratch() {
    const std::string parent = std::filesystem::is_directory("/dev/shm")
                                   ? "/dev/shm"
                                   : std::filesystem::temp_directory_path().string();
    path_ = parent + "/cowfs-fuzz-" + std::to_string(::getpid());
    std::filesystem::create_directory(path_);
    write("below", std::vector<std::byte>(5000, std::byte{7}));
  }
  ImageScratch(const ImageScratch&) = delete;
  ImageScratch& operator=(const ImageScratch&) = delete;
  ~ImageScratch() { std::filesystem::remove_all(path_); }

  void write(const std::string& name, const std::vector<std::byte>& bytes) const {
    const File file(path_ + "/" + name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    file.write(bytes, 0);
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// Edits until the input ends.
inline void edit_image(std::vector<std::byte>& image, Input& input) {
  constexpr std::array<uint64_t, 14> kEdges{
      0,          1,    512,  uint64_t{1} << 62, uint64_t{1} << 63,       UINT64_MAX, INT64_MAX,
      UINT32_MAX, 1024, 4096, uint64_t{1} << 50, (uint64_t{1} << 50) + 1, 1ULL << 31, 65536};
  while (!input.empty() && !image.empty()) {
    const size_t kind = input.choice(5);
    const size_t at = input.number<uint16_t>() % image.size();
    const auto put = [&](uint64_t number, size_t bytes) {
      for (size_t i = 0; i < bytes && at + i < image.size(); ++i) {
        image[at + i] = static_cast<std::byte>(number >> (8 * (bytes - 1 - i)));
      }
    };
    if (kind == 0) {
      const std::string bytes = input.text();
      for (size_t i = 0; i < bytes.size() && at + i < image.size(); ++i) {
        image[at + i] = static_cast<std::byte>(bytes[i]);
      }
    } else if (kind == 1) {
      put(kEdges[input.choice(kEdges.size())], 8);
    } else if (kind == 2) {
      put(kEdges[input.choice(kEdges.size())], 4);
    } else if (kind == 3) {
      put(input.number<uint8_t>(), 1);
    } else {
      image.resize(at);
    }
  }
}

inline void read_base(const Base& base) {
  const auto tolerate = [](const auto& action) {
    try {
      action();
    } catch (const Error&) {
    }
  };
  const uint64_t size = base.size();
  std::vector<std::byte> buffer(20'000);
  for (const uint64_t at :
       {uint64_t{0}, uint64_t{3000}, size / 2, size - std::min<uint64_t>(size, 9000)}) {
    if (at >= size) continue;
    const std::span<std::byte> piece(
        buffer.data(), static_cast<size_t>(std::min<uint64_t>(buffer.size(), size - at)));
    tolerate([&] { base.read(piece, at); });
    tolerate([&] { require(base.read_cached(piece, at) <= piece.size()); });
    tolerate([&] {
      const std::optional<uint64_t> data = base.next_data(at, size);
      require(!data || (*data >= at && *data < size));
    });
    tolerate([&] {
      const uint64_t hole = base.next_hole(at, size);
      require(hole >= at && hole <= size);
    });
  }
}

inline void use_image(const ImageScratch& scratch, const std::vector<std::byte>& image,
                      const BaseOptions& options) {
  scratch.write("image", image);
  try {
    const Base base(scratch.path() + "/image", options);
    require(base.size() > 0 && base.size() <= uint64_t{1} << 50);
    for (const auto& file : base.files()) {
      require(file->file.path().starts_with(scratch.path() + "/"));
    }
    read_base(base);
    static_cast<void>(base.identity_and_fingerprints());
  } catch (const Error&) {
  }
}

}  // namespace cowfs::fuzz
