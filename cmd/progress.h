#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace cowfs {

/// A line on standard error that is written over and gone at the end; nothing where that is no
/// terminal, and nothing in the first second.
class Progress {
 public:
  Progress() = default;
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { clear(); }

  void show(const std::string& text);
  /// "checking  ████░░░░░░  40%"
  void show(std::string_view what, uint64_t done, uint64_t total);
  /// Before something else is printed.
  void clear();

 private:
  [[nodiscard]] bool due() const;

  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  bool begun_ = false;
  bool shown_ = false;
};

}  // namespace cowfs
