#pragma once

#include <spdlog/fwd.h>

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace cowfs {

/// What a server may still do.
struct Sandbox {
  std::optional<int> landlock;            ///< the version of its interface; none: not in the kernel
  std::vector<std::string> capabilities;  ///< that it holds, "CAP_LEASE" say
  bool no_new_privs = false;
};

/// Takes from the calling process, and all that it will start, what a server does not need: every
/// capability but a few, privileges by set-user-ID programs, and, where the kernel has Landlock,
/// all files but `bases` (read-only), what is in the directory `store`, and /proc (read-only). It
/// can start no program then. What is open stays open. The calling thread must be the only one.
/// Logs what the kernel has not. Throws Error where it refuses something.
Sandbox enter_sandbox(std::span<const int> bases, const std::string& store, spdlog::logger& log);

nlohmann::json to_json(const Sandbox& sandbox);

}  // namespace cowfs
