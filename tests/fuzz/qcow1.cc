// See image_input.h.

#include "tests/fuzz/image_input.h"
#include "tests/store/image_maker.h"

using namespace cowfs;
using namespace cowfs::fuzz;
using test::MadeCluster;
using test::MadeQcow1;

namespace {

std::vector<std::vector<std::byte>> sound_qcow1_images() {
  const std::vector<std::byte> bytes(300, std::byte{65});
  const MadeCluster plain{.kind = MadeCluster::Kind::plain, .bytes = bytes};
  const MadeCluster packed{.kind = MadeCluster::Kind::packed, .bytes = bytes};
  const MadeQcow1 alone{.size = 70'000, .clusters = {{0, plain}, {1, packed}, {70, plain}}};
  MadeQcow1 overlay = alone;
  overlay.backing = "below";
  const MadeQcow1 large{.cluster_bits = 12,
                        .l2_bits = 9,
                        .size = uint64_t{1} << 34,
                        .clusters = {{3, packed}, {600, plain}}};
  return {alone.file(), overlay.file(), large.file()};
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const ImageScratch scratch;
  static const std::vector<std::vector<std::byte>> sound = sound_qcow1_images();
  Input input(data, size);
  std::vector<std::byte> image = sound[input.choice(sound.size())];
  BaseOptions options;
  options.find_formats = true;
  options.format = BaseFormat::qcow;
  edit_image(image, input);
  use_image(scratch, image, options);
  return 0;
}
