#include "fs/program.h"

#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
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

/// Empty unless it leads to the program that this process runs, today and to whoever looks.
std::string started_by_path() {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): it returns an address as a number
  const auto* const given = reinterpret_cast<const char*>(::getauxval(AT_EXECFN));
  if (given == nullptr) return "";
  std::error_code error;
  const std::string path = std::filesystem::absolute(given, error).lexically_normal();
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
  std::string why = "run " + path_ + ": " + error_text(code);
  // The interpreter would look for a script that is closed by then.
  if (code == ENOENT) why += ", or it is a script, which cannot take the place of a program";
  return why;
}

std::string Program::own_path() {
  if (std::string started_by = started_by_path(); !started_by.empty()) return started_by;
  std::array<char, 4096> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  if (length < 0) throw Error{errno, "find this program"};
  return {path.data(), static_cast<size_t>(length)};
}

}  // namespace cowfs
