#pragma once

#include <string>

namespace cowfs {

/// A directory in $TMPDIR or /tmp that goes away with what is in it.
class TemporaryDirectory {
 public:
  /// `name` is the front of its name.
  explicit TemporaryDirectory(const std::string& name);
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory();

  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace cowfs
