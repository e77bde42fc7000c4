// See image_input.h.

#include "store/qcow2_format.h"
#include "tests/fuzz/image_input.h"
#include "tests/store/image_maker.h"

using namespace cowfs;
using namespace cowfs::fuzz;
using test::MadeCluster;
using test::MadeQcow2;

namespace {

std::vector<std::byte> text_bytes() {
  std::vector<std::byte> bytes(400);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>("text"[i % 4]);
  return bytes;
}

std::vector<std::vector<std::byte>> sound_images() {
  using Kind = MadeCluster::Kind;
  const MadeCluster plain{.kind = Kind::plain, .bytes = text_bytes()};
  const MadeCluster packed{.kind = Kind::packed, .bytes = text_bytes()};
  const MadeCluster zero{.kind = Kind::zero};
  const MadeCluster parts{.kind = Kind::plain, .bytes = text_bytes(), .subclusters = 0xf000001f};
  const MadeCluster holes{.kind = Kind::zero, .subclusters = 0xff};
  const MadeQcow2 three{.size = 70'000,
                        .clusters = {{0, plain}, {1, packed}, {5, zero}, {70, plain}}};
  MadeQcow2 two = three;
  two.version = 2;
  two.clusters.erase(5);
  MadeQcow2 overlay = three;
  overlay.backing = "below";
  overlay.backing_format = "raw";
  MadeQcow2 zstd = three;
  zstd.zstd = true;
  MadeQcow2 snapshots = three;
  snapshots.snapshots = {{"1", "first"}, {"2", "s"}};
  const MadeQcow2 extended{.cluster_bits = 14,
                           .size = 200'000,
                           .extended_l2 = true,
                           .backing = "below",
                           .clusters = {{0, plain}, {1, parts}, {2, holes}, {3, packed}}};
  return {three.file(), two.file(), overlay.file(), zstd.file(), snapshots.file(), extended.file()};
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const ImageScratch scratch;
  static const std::vector<std::vector<std::byte>> sound = sound_images();
  Input input(data, size);
  std::vector<std::byte> image = sound[input.choice(sound.size())];
  BaseOptions options;
  options.find_formats = input.choice(4) != 0;
  options.format = BaseFormat::qcow2;
  if (input.choice(3) == 0) options.snapshot = "s";
  edit_image(image, input);
  use_image(scratch, image, options);
  return 0;
}
