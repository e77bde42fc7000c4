#include "store/temporary_directory.h"

#include <stdlib.h>

#include <cerrno>
#include <filesystem>

#include "store/error.h"

namespace cowfs {

TemporaryDirectory::TemporaryDirectory(const std::string& name) {
  const char* set = ::getenv("TMPDIR");
  const std::string parent = set != nullptr && *set != '\0' ? set : "/tmp";
  path_ = parent + "/" + name + "-XXXXXX";
  if (::mkdtemp(path_.data()) != nullptr) return;
  const int code = errno;
  throw Error::with_message(code, "make a temporary directory in " + parent + ": " +
                                      error_text(code) +
                                      "; name one that can be written to in TMPDIR");
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace cowfs
