// Names of images, and what is made of any text for terminals.

#include "store/names.h"

#include <nlohmann/json.hpp>

#include "store/error.h"
#include "tests/fuzz/input.h"

using namespace cowfs;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string name(reinterpret_cast<const char*>(data), size);
  try {
    check_name(name);
    fuzz::require(!name.empty() && name.size() <= kMaxNameBytes);
    fuzz::require(name.find('/') == std::string::npos && name.find('\0') == std::string::npos);
  } catch (const Error&) {
  }
  const std::string shown = printable(name);
  for (const char c : shown) fuzz::require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
  static_cast<void>(nlohmann::json(shown).dump());  // throws if it is no UTF-8
  return 0;
}
