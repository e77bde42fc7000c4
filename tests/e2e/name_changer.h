#pragma once

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "tests/e2e/data.h"
#include "tests/e2e/load.h"

namespace cowfs::e2e {

// Makes, renames, exchanges, resizes and removes the images a and b again and again, and looks at
// what comes of each step, which all have to succeed and to be done once.
class NameChanger {
 public:
  explicit NameChanger(const Path& directory) : a_(directory / "a"), b_(directory / "b") {}
  Load& load() { return load_; }

 private:
  void Round() const {
    const int fd = open(a_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    Demand(fd >= 0, "create");
    Demand(pwrite(fd, "content", 7, 0) == 7, "write");
    Demand(ftruncate(fd, 100'000) == 0, "truncate");
    Demand(rename(a_.c_str(), b_.c_str()) == 0, "rename");
    Demand(access(a_.c_str(), F_OK) != 0, "the old name");
    const int other = open(a_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    Demand(other >= 0, "create again");
    Demand(renameat2(AT_FDCWD, a_.c_str(), AT_FDCWD, b_.c_str(), RENAME_EXCHANGE) == 0, "exchange");
    struct stat of_name {};
    struct stat of_file {};
    Demand(stat(a_.c_str(), &of_name) == 0 && fstat(fd, &of_file) == 0, "stat");
    Demand(of_name.st_ino == of_file.st_ino && of_name.st_size == 100'000, "exchanged once");
    Demand(unlink(a_.c_str()) == 0, "unlink");
    char text[8] = {};
    Demand(pread(fd, text, 7, 0) == 7 && std::string(text) == "content", "read what is unlinked");
    Demand(close(fd) == 0 && close(other) == 0, "close");
    Demand(unlink(b_.c_str()) == 0, "unlink the other");
  }

  const Path a_;
  const Path b_;
  Load load_{[this] { Round(); }};
};

}  // namespace cowfs::e2e
