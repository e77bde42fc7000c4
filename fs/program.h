#pragma once

#include <string>
#include <vector>

#include "store/descriptor.h"

namespace cowfs {

/// A program that can be run though its path leads to another one by now, or to none.
class Program {
 public:
  /// Keeps a descriptor of the file, which is none of the first `free_below`. Throws Error.
  Program(const std::string& path, int free_below) : Program(path, free_below, path) {}
  /// The same of one that is found at `file`, and has its successors at `path`.
  Program(std::string path, int free_below, const std::string& file);

  [[nodiscard]] const std::string& path() const { return path_; }

  /// Stays the program's.
  [[nodiscard]] int fd() const { return file_.fd(); }

  /// Becomes the program; `arguments` begin with its name. Returns only if it fails. For a process
  /// with one thread.
  void execute(std::vector<std::string> arguments) const;

  /// The path from which this process was started.
  static std::string own_path();

 private:
  const std::string path_;
  const Descriptor file_;
};

}  // namespace cowfs
