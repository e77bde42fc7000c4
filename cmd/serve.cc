// What the keeper of a mount starts: not for people.

#include <fcntl.h>
#include <spdlog/logger.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <exception>
#include <nlohmann/json.hpp>

#include "cmd/command.h"
#include "cmd/kept_config.h"
#include "cmd/log_target.h"
#include "fs/keeper_link.h"
#include "fs/server.h"
#include "fs/server_config.h"
#include "store/error.h"

namespace cowfs {
namespace {

/// The socket's number, by agreement with the keeper.
constexpr int kSocket = 3;

}  // namespace

int run_serve(const Arguments& /*arguments*/) {
  // Started by its descriptor it would be called by that one's number.
  ::prctl(PR_SET_NAME, "cowfs", 0, 0, 0);
  if (::fcntl(kSocket, F_GETFD) < 0) {
    throw UsageError("is for the keeper of a mount only; use `cowfs mount`");
  }
  KeeperLink keeper(kSocket);
  const auto failed = [&](int code, const char* what) {
    keeper.say(Say::failed, code, what);
    return kFailed;
  };
  int status = kFailed;
  try {
    const nlohmann::json json = read_kept_config(keeper.held("config").value());
    const Log log = open_log(log_target_from_json(json.at("log")));
    ServerConfig config = server_config_from_json(json.at("server"));
    config.log = log.logger;
    config.use_log = log.use;
    status = serve(std::move(config), keeper) ? kDone : kFailed;
  } catch (const Error& error) {
    return failed(error.code(), error.what());
  } catch (const std::exception& error) {
    return failed(EIO, error.what());
  }
  keeper.say(Say::ended, status);
  return status;
}

}  // namespace cowfs
