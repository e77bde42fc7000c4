#include "fs/program.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "store/error.h"

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

std::string Program::own_path() {
  std::array<char, 4096> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  if (length < 0) throw Error{errno, "find this program"};
  return {path.data(), static_cast<size_t>(length)};
}

}  // namespace cowfs
