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

KeeperConfig following_keeper_config(const ServerConfig& server, const Log& log) {
  return {.mount_point = server.mount_point,
          .arguments = {"cowfs", "serve", server.mount_point},
          .instead_of_program = {},
          .foreground = false,
          .server = "",
          .store = server.store.directory,
          .on_watermark = server.on_watermark,
          .tune = false,
          .tune_always = false,
          .log = log.logger,
          .reopen_log = log.reopen};
}

}  // namespace cowfs
