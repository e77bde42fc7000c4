// What a keeper becomes that is replaced by the program on disk: not for people.
//
//   cowfs keep FD             go on as the keeper, by what is in the file of memory FD
//   cowfs keep --back WHY FD  the same, for a program that could not
//   cowfs keep --probe FD     print whether this program could

#include <fmt/format.h>
#include <spdlog/logger.h>

#include <cerrno>
#include <charconv>
#include <exception>
#include <nlohmann/json.hpp>

#include "cmd/command.h"
#include "cmd/kept_config.h"
#include "cmd/log_target.h"
#include "fs/keeper.h"
#include "fs/keeper_reexec.h"
#include "fs/server_config.h"
#include "store/error.h"

namespace cowfs {
namespace {

int number_of(const std::string& text) {
  int fd = -1;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), fd);
  if (error == std::errc() && stop == text.data() + text.size() && fd > 2) return fd;
  throw UsageError("is for the keeper of a mount only; use `cowfs restart --keeper`");
}

/// A keeper without its log file is better than none.
Log open_log_somewhere(int config) {
  std::string why;
  try {
    return open_log(log_target_from_json(read_kept_config(config).at("log")));
  } catch (const std::exception& error) {
    why = error.what();
  }
  Log log = open_log(LogTarget{});
  log.logger->error("keeper: {}; it logs here from now on", why);
  return log;
}

int go_on(int memory, const std::string& failure) {
  bool goes_on = false;
  try {
    KeeperLegacy legacy = inherit_keeper(memory);
    const KeeperLegacy::Process process = legacy.process.value();
    legacy.process->failure = failure;
    const int config = legacy.held.at("config");
    const Log log = open_log_somewhere(config);
    const ServerConfig server = server_config_from_json(read_kept_config(config).at("server"));
    KeeperConfig keeper = following_keeper_config(server, log);
    keeper.foreground = process.foreground;
    return keep(
        keeper, [&] { goes_on = true; }, legacy);
  } catch (const std::exception& error) {
    if (!goes_on && failure.empty()) go_back(memory, error.what());
    throw;
  }
}

}  // namespace

int run_keep(const Arguments& arguments) {
  const std::string first = arguments.empty() ? "" : arguments.front();
  const int memory = number_of(arguments.empty() ? "" : arguments.back());
  if (first == "--probe") {
    fmt::print("{}\n", known_form(memory));
    return kDone;
  }
  return go_on(memory, first == "--back" && arguments.size() == 3 ? arguments[1] : "");
}

}  // namespace cowfs
