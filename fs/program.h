#pragma once

#include <string>
#include <vector>

#include "store/descriptor.h"

namespace cowfs {

/// A program that can be run though its path leads to another one by now, or to none.
class Program {
 public:
  /// Keeps a descriptor of the file, which is none of the first `free_below`. Throws Error.
  Program(std::string path, int free_below);

  [[nodiscard]] const std::string& path() const { return path_; }

  /// Becomes the program; `arguments` begin with its name. Returns only if it fails. For a process
  /// that was just forked.
  void execute(std::vector<std::string> arguments) const;

  /// The path from which this process was started.
  static std::string own_path();

 private:
  const std::string path_;
  const Descriptor file_;
};

}  // namespace cowfs
