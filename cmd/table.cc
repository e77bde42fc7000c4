#include "cmd/table.h"

#include <fmt/format.h>
#include <langinfo.h>
#include <unistd.h>

#include <algorithm>
#include <clocale>
#include <cmath>
#include <ctime>

#include "store/names.h"

namespace cowfs {
namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;

/// In characters: bytes but for those that continue a UTF-8 character.
size_t width(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0U) != 0x80;
  }));
}

bool locale_is_utf8() {
  std::setlocale(LC_CTYPE, "");
  return std::string_view(::nl_langinfo(CODESET)) == "UTF-8";
}

std::string calendar(const std::tm& time, const char* format) {
  char text[32];
  return {text, std::strftime(text, sizeof(text), format, &time)};
}

/// Seconds since the epoch, rounded down, and the nanoseconds from there on.
std::pair<std::time_t, int64_t> split(int64_t ns) {
  const int64_t rest = ((ns % kNsPerSecond) + kNsPerSecond) % kNsPerSecond;
  return {(ns - rest) / kNsPerSecond, rest};
}

}  // namespace

void Table::add_row(std::vector<std::string> cells) {
  for (std::string& cell : cells) cell = printable(cell);
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  std::vector<size_t> widths;
  for (size_t i = 0; i < columns_.size(); ++i) {
    size_t widest = width(columns_[i].title);
    for (const auto& row : rows_) widest = std::max(widest, width(row[i]));
    widths.push_back(widest);
  }
  std::string text;
  const auto add_line = [&](const auto& cell_of) {
    std::string line;
    for (size_t i = 0; i < columns_.size(); ++i) {
      const std::string& cell = cell_of(i);
      const std::string padding(widths[i] - width(cell), ' ');
      if (i > 0) line += "  ";
      line += columns_[i].align == Align::right ? padding + cell : cell + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  };
  add_line([&](size_t i) -> const std::string& { return columns_[i].title; });
  for (const auto& row : rows_) add_line([&](size_t i) -> const std::string& { return row[i]; });
  return text;
}

bool on_terminal() { return ::isatty(STDOUT_FILENO) != 0; }

std::string percent_bar(double percent) {
  constexpr int kCells = 10;
  static const bool utf8 = locale_is_utf8();
  // Something is not nothing, and all is only all.
  const int rounded = static_cast<int>(std::lround(percent / 100 * kCells));
  const int full = percent <= 0 ? 0 : percent >= 100 ? kCells : std::clamp(rounded, 1, kCells - 1);
  std::string bar;
  for (int i = 0; i < kCells; ++i) bar += i < full ? (utf8 ? "█" : "#") : (utf8 ? "░" : ".");
  return bar;
}

std::string format_time(int64_t ns) {
  const std::time_t seconds = split(ns).first;
  std::tm time{};
  ::localtime_r(&seconds, &time);
  return calendar(time, "%Y-%m-%d %H:%M");
}

std::string format_time_exact(int64_t ns) {
  const auto [seconds, rest] = split(ns);
  std::tm time{};
  ::gmtime_r(&seconds, &time);
  return fmt::format("{}.{:09}Z", calendar(time, "%Y-%m-%dT%H:%M:%S"), rest);
}

}  // namespace cowfs
