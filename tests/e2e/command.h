#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/e2e/undo.h"

namespace cowfs::e2e {

using Path = std::filesystem::path;
using Json = nlohmann::json;
using Arguments = std::vector<std::string>;

// How a command ended.
struct Result {
  int status = -1;         // exit status; 128 + signal when a signal ended it
  std::string out;         // standard output
  std::string err;         // standard error
  bool timed_out = false;  // it was killed for taking too long
  bool let_go = true;      // nobody kept its output open after it had ended (a daemon would hold
                           // the user's terminal)
  std::string command;     // for messages
};

struct RunOptions {
  Path directory = {};                // working directory; empty: ours
  std::chrono::seconds timeout{120};  // after which the command is killed: a test must not hang
  bool as_nobody = false;             // with uid and gid 65534, no capabilities, no set-id gains
  std::string environment = {};       // one more NAME=value
};

// Runs a program to its end. Throws only when it cannot be started at all.
Result Execute(const Arguments& arguments, const RunOptions& options = {});

// Runs a shell script (sh -eu).
Result Shell(const std::string& script, const RunOptions& options = {});

// Runs the cowfs under test.
Result Cowfs(const Arguments& arguments, const RunOptions& options = {});

// The path of the cowfs under test: $COWFS, or what the build made.
Path Program();

// Standard output of a command that has to succeed; throws with both outputs when it did not.
std::string Must(const Result& result);

// What `cowfs ARGUMENTS --json` printed. Throws when it failed or was no JSON.
Json CowfsJson(Arguments arguments);

// One argument for a shell, quoted.
std::string Quoted(const std::string& text);

// A command that runs in the background and is killed at the end of the test.
class Background {
 public:
  // Its output goes to the two files.
  Background(const Arguments& arguments, const Path& out, const Path& err);
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;
  ~Background();

  pid_t pid() const { return pid_; }
  void Signal(int signal) const;
  // Exit status as in Result; throws when it does not end within the time.
  int Wait(std::chrono::seconds timeout = std::chrono::seconds(60));

 private:
  pid_t pid_;
  bool ended_ = false;
  Undo undo_;
};

// Waits until the condition holds; false when it does not within the time.
template <typename Condition>
bool Eventually(Condition condition, std::chrono::seconds timeout = std::chrono::seconds(30));

void SleepMilliseconds(int milliseconds);

template <typename Condition>
bool Eventually(Condition condition, std::chrono::seconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) {
      return false;
    }
    SleepMilliseconds(20);
  }
  return true;
}

}  // namespace cowfs::e2e
