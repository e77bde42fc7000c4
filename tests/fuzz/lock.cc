// What the file `lock` of a store says.

#include "store/store_lock.h"
#include "tests/fuzz/input.h"

using namespace cowfs;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Holder holder = parse_holder({reinterpret_cast<const char*>(data), size});
  fuzz::require(holder.mount.find('\n') == std::string::npos);
  return 0;
}
