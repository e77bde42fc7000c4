#include "store/temporary_directory.h"

#include <stdlib.h>

#include <cerrno>
#include <filesystem>

#include "store/error.h"

namespace cowfs {

TemporaryDirectory::TemporaryDirectory(const std::string& name)
    : path_(std::filesystem::temp_directory_path() / (name + "-XXXXXX")) {
  if (::mkdtemp(path_.data()) == nullptr) throw Error(errno, "make " + path_);
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace cowfs
