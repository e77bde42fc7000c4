#include "fs/program.h"

#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <utility>

#include "store/error.h"
#include "store/file.h"

namespace cowfs {
namespace {

int open_above(const std::string& path, int free_below) {
  const int fd = ::open(path.c_str(), O_PATH | O_CLOEXEC);
  if (fd < 0) return fd;
  const int high = ::fcntl(fd, F_DUPFD_CLOEXEC, free_below);
  const int code = errno;
  ::close(fd);
  errno = code;
  return high;
}

/// Empty unless it leads to the program that this process runs, today and to whoever looks.
std::string started_by_path() {
  const auto* const given = std::bit_cast<const char*>(::getauxval(AT_EXECFN));
  if (given == nullptr) return "";
  std::error_code error;
  std::filesystem::path parts;  // with "..", which leads elsewhere behind a link
  for (const auto& part : std::filesystem::absolute(given, error)) {
    if (part != ".") parts /= part;
  }
  const std::string path = parts;
  if (error || path.starts_with("/proc/") || path.starts_with("/dev/fd/")) return "";
  struct stat there {};
  struct stat here {};
  if (::stat(path.c_str(), &there) != 0 || ::stat("/proc/self/exe", &here) != 0) return "";
  return there.st_dev == here.st_dev && there.st_ino == here.st_ino ? path : "";
}

}  // namespace

Program::Program(std::string path, int free_below, const std::string& file)
    : path_(std::move(path)), file_(open_above(file, free_below), file.c_str()) {}

void Program::execute(std::vector<std::string> arguments) const {
  std::vector<char*> vector;
  vector.reserve(arguments.size() + 1);
  for (std::string& argument : arguments) vector.push_back(argument.data());
  vector.push_back(nullptr);
  ::execveat(file_.fd(), "", vector.data(), environ, AT_EMPTY_PATH);
}

std::string Program::why_not(int code) const {
  bool script = false;
  if (code == ENOENT) {
    // Its interpreter would have to open it, and it is closed by then.
    attempt([&] {
      const File file("/proc/self/fd/" + std::to_string(fd()), O_RDONLY);
      std::array<std::byte, 2> start{};
      script = file.read(start, 0) == start.size() &&
               start == std::array{std::byte{'#'}, std::byte{'!'}};
    });
  }
  return "run " + path_ + ": " +
         (script ? "a script cannot take the place of the program" : error_text(code));
}

std::string Program::own_path() {
  if (std::string started_by = started_by_path(); !started_by.empty()) return started_by;
  std::array<char, 4096> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  if (length < 0) throw Error{errno, "find this program"};
  return {path.data(), static_cast<size_t>(length)};
}

}  // namespace cowfs
