#include "fs/libfuse_log.h"

#include <fuse_lowlevel.h>
#include <spdlog/spdlog.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <utility>

#include "store/error.h"

namespace cowfs {
namespace {

/// libfuse's log function has no argument of ours, hence a variable.
thread_local std::string* kept = nullptr;

void log_line(std::string line) {
  while (line.ends_with('\n')) line.pop_back();
  if (kept != nullptr) {
    *kept += (kept->empty() ? "" : "; ") + line;
  } else {
    spdlog::warn("libfuse: {}", line);
  }
}

void log_libfuse(fuse_log_level /*level*/, const char* format, va_list arguments) {
  std::array<char, 512> text{};
  std::vsnprintf(text.data(), text.size(), format, arguments);
  attempt([&] { log_line(text.data()); });
}

}  // namespace

LibfuseMessages::LibfuseMessages() {
  kept = &text_;
  fuse_set_log_func(log_libfuse);
}

LibfuseMessages::~LibfuseMessages() { kept = nullptr; }

}  // namespace cowfs
