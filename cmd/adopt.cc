#include "cmd/adopt.h"

#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <optional>

#include "cmd/command.h"
#include "cmd/daemon.h"
#include "cmd/kept_config.h"
#include "cmd/log_target.h"
#include "fs/adoption.h"
#include "fs/keeper.h"
#include "fs/keeper_state.h"
#include "fs/server_config.h"
#include "store/error.h"

namespace cowfs {
namespace {

int keep_orphan(const MountEntry& mount, const std::function<void()>& ready) {
  Orphan orphan = find_orphan(mount.point);
  int& config_fd = orphan.legacy.held.at("config");
  nlohmann::json config = read_kept_config(config_fd);
  const ServerConfig server = server_config_from_json(config.at("server"));
  LogTarget target = log_target_from_json(config.at("log"));
  // The terminal of who started it is not ours.
  if (target.kind == LogTarget::Kind::standard_error) target.kind = LogTarget::Kind::syslog;
  config["log"] = to_json(target);
  ::close(config_fd);
  orphan.legacy.held.erase("config");  // the keeper makes another

  become_user_of(orphan.pid);
  const Log log = open_log(target);
  KeeperConfig keeper = following_keeper_config(server, log);
  keeper.server = config.dump();
  return keep(keeper, ready, orphan.legacy);
}

}  // namespace

int adopt(const MountEntry& mount, const std::string& point) {
  const pid_t caller = ::getpid();
  const int status = run_in_background(
      [&](const std::function<void()>& ready) { return keep_orphan(mount, ready); },
      IfAbandoned::goes_on);
  if (::getpid() != caller) return status;
  const std::optional<KeeperLook> keeper = find_keeper(point);
  // Nothing is said yet where another restart is under way by now.
  if (keeper && keeper->asked > 0 && !keeper->well) {
    throw Error::with_message(EIO, mount.point + ": has a keeper again, but: " + keeper->message);
  }
  return status;
}

}  // namespace cowfs
