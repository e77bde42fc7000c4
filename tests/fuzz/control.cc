// Messages of commands to the server.

#include "fs/control.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "store/error.h"
#include "tests/fuzz/input.h"

using namespace cowfs;

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ControlMessage message;
  message.text.fill('x');  // there may be no end
  std::copy_n(data, std::min(size, message.text.size()), message.text.begin());
  try {
    const nlohmann::json json = unpack(message);
    ControlMessage copy{};
    pack(json, copy);
    static_cast<void>(unpack(copy));
  } catch (const Error&) {
  }
  return 0;
}
