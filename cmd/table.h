#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cowfs {

/// Rows of text in aligned columns, two spaces apart.
class Table {
 public:
  enum class Align { left, right };
  struct Column {
    std::string title;
    Align align = Align::left;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  /// As many cells as there are columns; see printable for how they are shown.
  void add_row(std::vector<std::string> cells);

  /// With a line of titles; each line ends with a newline.
  [[nodiscard]] std::string text() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// Whether standard output is a terminal.
bool on_terminal();

/// Ten characters wide; of blocks where the locale's characters have them.
std::string percent_bar(double percent);

/// Local time to the minute, "2026-11-24 06:25".
std::string format_time(int64_t ns);
/// UTC to the nanosecond, "2026-11-24T06:25:00.123456789Z".
std::string format_time_exact(int64_t ns);

}  // namespace cowfs
