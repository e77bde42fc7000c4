// The file of a layer as a stranger could hand it to us (I10): edits, as in image_input.h, of one
// that cowfs has made and written to. It is looked through, and opened and written to, by the
// ordinary code; what is written must read back, whatever the tables say of the rest.

#include <fcntl.h>

#include <optional>

#include "store/error.h"
#include "store/qcow2_file.h"
#include "tests/fuzz/image_input.h"

using namespace cowfs;
using namespace cowfs::fuzz;

namespace {

constexpr uint32_t kChunk = 4096;
constexpr uint64_t kSize = 3'000'000;

Qcow2File::Identity identity(const ImageScratch& scratch) {
  return {.path = scratch.path() + "/layer",
          .store = "01234567-89ab-cdef-0123-456789abcdef",
          .layer = 7,
          .chunk = ChunkSize(kChunk),
          .backing_name = scratch.path() + "/below",
          .backing_format = BaseFormat::raw};
}

/// Gives slots to the first chunks of some pages, and commits.
void write_some(Qcow2File& file, uint64_t pages, uint64_t chunks) {
  std::vector<PageCopy> copies;
  for (uint64_t page = 0; page < pages; ++page) {
    PageCopy copy{.page = page * 3, .bits = {}};
    file.load_pages(
        copy.page, 1, [](const MapBits&) { return true; },
        [&](uint64_t, const MapBits& bits) { copy.bits = bits; });
    for (uint64_t i = 0; i < chunks; ++i) {
      if (SlotMap::entry(copy.bits, i) != 0) continue;
      SlotStream stream;
      const std::optional<SlotRun> run = file.allocate(1, std::nullopt, stream);
      if (!run) return;
      const std::vector<std::byte> bytes(kChunk, std::byte{9});
      const SlotSpace::Place place = file.at(run->first);
      place.file->write(bytes, place.offset);
      SlotMap::put(copy.bits, i, SlotMap::entry_of_slot(run->first));
    }
    copies.push_back(copy);
  }
  file.make_tables(copies, file.size());
  file.sync();
  file.write_pages(copies);
}

std::vector<std::byte> sound_layer(const ImageScratch& scratch) {
  Qcow2File file(identity(scratch), nullptr);
  file.make(kSize);
  file.open();
  write_some(file, 2, 3);
  file.close();
  const File made(scratch.path() + "/layer", O_RDONLY);
  std::vector<std::byte> bytes(static_cast<size_t>(made.size()));
  made.read_exactly(bytes, 0);
  return bytes;
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const ImageScratch scratch;
  static const std::vector<std::byte> sound = sound_layer(scratch);
  Input input(data, size);
  const uint64_t pages = 1 + input.choice(3);
  std::vector<std::byte> layer = sound;
  edit_image(layer, input);
  scratch.write("layer", layer);
  try {
    static_cast<void>(Qcow2File(identity(scratch), nullptr).check());
  } catch (const Error&) {
  }
  try {
    Qcow2File file(identity(scratch), nullptr);
    static_cast<void>(file.peek_size(kSize));
    file.open();
    write_some(file, pages, 5);
    file.write_size(file.size() / 2);
    file.clear_from(ChunkSize(kChunk).chunk_of(ChunkSize(kChunk).up(file.size())));
    file.close();
    // What was opened and closed well is sound, unless its tables, which were not all looked at,
    // were not before.
    static_cast<void>(Qcow2File(identity(scratch), nullptr).check());
  } catch (const Error&) {
  }
  return 0;
}
