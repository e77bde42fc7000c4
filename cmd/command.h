#pragma once

#include <cerrno>
#include <string>
#include <string_view>
#include <vector>

#include "store/error.h"

namespace cowfs {

/// What follows the command's name on the command line.
using Arguments = std::vector<std::string>;

/// What `run` of a command returns, and the program with it.
enum ExitStatus : int { kDone = 0, kFailed = 1, kUsage = 2 };

struct Command {
  const char* name;
  const char* summary;  ///< for `cowfs --help`
  /// Throws Error, or UsageError where the command line makes no sense; nothing was done then.
  int (*run)(const Arguments& arguments);
  int usage_status = kUsage;  ///< after an UsageError
};

/// A command line that cannot be understood, or a value on it that nothing can have: exit status 2.
class UsageError : public Error {
 public:
  explicit UsageError(const std::string& message, int code = EINVAL)
      : Error(with_message(code, message)) {}
};

/// Prints `cowfs COMMAND: what` on standard error: one line, whatever names it holds.
void print_message(std::string_view command, std::string_view what);

int run_mount(const Arguments& arguments);
int run_umount(const Arguments& arguments);
int run_sync(const Arguments& arguments);
int run_create(const Arguments& arguments);
int run_ls(const Arguments& arguments);
int run_info(const Arguments& arguments);
int run_rm(const Arguments& arguments);
int run_mv(const Arguments& arguments);
int run_resize(const Arguments& arguments);
int run_limit(const Arguments& arguments);
int run_pool(const Arguments& arguments);
int run_check(const Arguments& arguments);
int run_restart(const Arguments& arguments);
/// Not for people, and in no list; see cmd/serve.cc and cmd/keep.cc.
int run_serve(const Arguments& arguments);
int run_keep(const Arguments& arguments);

}  // namespace cowfs
