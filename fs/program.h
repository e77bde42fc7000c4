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

  /// Becomes the program; `arguments` begin with its name. Returns only if it fails, with errno
  /// set. For a process with one thread.
  void execute(std::vector<std::string> arguments) const;

  /// What keeps the program from being run, after `execute` has failed with `code`: an errno value.
  /// Does not throw.
  [[nodiscard]] std::string why_not(int code) const;

  /// The path by which this process was started, absolute; symbolic links in it are not followed,
  /// since another program comes in the place of this one by such a link too. To be called in the
  /// working directory that the process was started in. Throws Error.
  static std::string own_path();

 private:
  const std::string path_;
  const Descriptor file_;
};

}  // namespace cowfs
