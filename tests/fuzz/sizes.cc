// Sizes and modes on the command line.

#include "cmd/sizes.h"

#include "cmd/owner.h"
#include "store/chunk_size.h"
#include "store/error.h"
#include "tests/fuzz/input.h"

using namespace cowfs;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const uint64_t bytes = parse_size(text);
    fuzz::require(bytes < uint64_t{1} << 63);
    fuzz::require(parse_size(std::to_string(bytes)) == bytes);
    fuzz::require(!format_size(bytes).empty());
    const double percent = private_percent(bytes, ~bytes);
    fuzz::require(percent >= 0 && percent <= 100);
  } catch (const Error&) {
  }
  try {
    fuzz::require(ChunkSize::valid(parse_chunk_size(text)));
  } catch (const Error&) {
  }
  try {
    fuzz::require(parse_mode(text) <= 0777);
  } catch (const Error&) {
  }
  return 0;
}
