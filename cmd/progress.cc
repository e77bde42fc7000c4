#include "cmd/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "cmd/table.h"

namespace cowfs {

bool Progress::due() const {
  constexpr std::chrono::milliseconds kPatience{1000};
  constexpr std::chrono::milliseconds kPause{100};
  static const bool terminal = ::isatty(STDERR_FILENO) != 0;
  return terminal && std::chrono::steady_clock::now() - last_ >= (begun_ ? kPause : kPatience);
}

void Progress::show(const std::string& text) {
  if (!due()) return;
  last_ = std::chrono::steady_clock::now();
  begun_ = shown_ = true;
  fmt::print(stderr, "\r\x1b[K{}", text);
  std::fflush(stderr);
}

void Progress::show(std::string_view what, uint64_t done, uint64_t total) {
  if (total == 0 || !due()) return;
  const double percent = 100.0 * static_cast<double>(done) / static_cast<double>(total);
  show(fmt::format("{}  {} {:3.0f}%", what, percent_bar(percent), percent));
}

void Progress::clear() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
  shown_ = false;
}

}  // namespace cowfs
