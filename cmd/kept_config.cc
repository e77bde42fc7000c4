#include "cmd/kept_config.h"

#include <cerrno>
#include <nlohmann/json.hpp>
#include <vector>

#include "store/error.h"
#include "store/file.h"

namespace cowfs {

nlohmann::json read_kept_config(int fd) {
  const File file = File::copy_of(fd, "configuration of the server");
  std::vector<std::byte> bytes(file.size());
  file.read_exactly(bytes, 0);
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  nlohmann::json json = nlohmann::json::parse(text, text + bytes.size(), nullptr, false);
  if (!json.is_object()) throw Error(EPROTO, "configuration of the server");
  return json;
}

}  // namespace cowfs
