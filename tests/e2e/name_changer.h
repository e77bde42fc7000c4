#pragma once

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "tests/e2e/data.h"

namespace cowfs::e2e {

// Makes, renames, exchanges, resizes and removes the images a and b again and again, and looks at
// what comes of each step, which all have to succeed and to be done once.
class NameChanger {
 public:
  explicit NameChanger(Path directory) : directory_(std::move(directory)) {
    thread_ = std::thread([this] {
      while (!stop_ && complaint_.empty()) Round();
    });
  }
  ~NameChanger() {
    if (thread_.joinable()) Stop();
  }
  void Stop() {
    stop_ = true;
    thread_.join();
  }
  // After Stop.
  const std::string& complaint() const { return complaint_; }
  uint64_t rounds() const { return rounds_; }

 private:
  void Expect(bool right, const std::string& what) {
    if (!right && complaint_.empty()) complaint_ = what + ": " + strerror(errno);
  }
  void Round() {
    const Path a = directory_ / "a";
    const Path b = directory_ / "b";
    const int fd = open(a.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    Expect(fd >= 0, "create");
    Expect(pwrite(fd, "content", 7, 0) == 7, "write");
    Expect(ftruncate(fd, 100'000) == 0, "truncate");
    Expect(rename(a.c_str(), b.c_str()) == 0, "rename");
    Expect(access(a.c_str(), F_OK) != 0, "the old name");
    const int other = open(a.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    Expect(other >= 0, "create again");
    Expect(renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0, "exchange");
    struct stat of_name {};
    struct stat of_file {};
    Expect(stat(a.c_str(), &of_name) == 0 && fstat(fd, &of_file) == 0, "stat");
    Expect(of_name.st_ino == of_file.st_ino && of_name.st_size == 100'000, "exchanged once");
    Expect(unlink(a.c_str()) == 0, "unlink");
    char text[8] = {};
    Expect(pread(fd, text, 7, 0) == 7 && std::string(text) == "content", "read what is unlinked");
    Expect(close(fd) == 0 && close(other) == 0, "close");
    Expect(unlink(b.c_str()) == 0, "unlink the other");
    ++rounds_;
  }

  const Path directory_;
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> rounds_ = 0;
  std::string complaint_;
  std::thread thread_;
};

}  // namespace cowfs::e2e
