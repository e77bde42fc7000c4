#include "fs/keeper_state.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <system_error>

#include "store/error.h"

namespace cowfs {
namespace {

namespace fs = std::filesystem;

constexpr std::array<char, 8> kMagic{'c', 'o', 'w', 'f', 's', 'k', 'p', 'r'};

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

template <size_t N>
std::string text_of(const std::array<char, N>& text) {
  return {text.begin(), std::find(text.begin(), text.end(), '\0')};
}

std::optional<KeeperLook> look_at(pid_t pid, const fs::path& file, const std::string& mount_point) {
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  const auto state = std::make_unique<KeeperState>();
  const ssize_t count = ::pread(fd, state.get(), sizeof(KeeperState), 0);
  ::close(fd);
  if (count != sizeof(KeeperState) || state->magic != kMagic ||
      state->version != KeeperState::kVersion || text_of(state->mount_point) != mount_point) {
    return std::nullopt;
  }
  return KeeperLook{.pid = pid,
                    .given_up = state->given_up != 0,
                    .server = state->server,
                    .asked = state->asked,
                    .well = state->well != 0,
                    .message = text_of(state->message)};
}

}  // namespace

int make_keeper_state() {
  const int fd = ::memfd_create(KeeperState::kName, MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, sizeof(KeeperState)) != 0) throw Error{errno, "make memory"};
  return fd;
}

KeeperState& map_keeper_state(int fd) {
  void* const memory =
      ::mmap(nullptr, sizeof(KeeperState), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) throw Error{errno, "make memory"};
  auto& state = *static_cast<KeeperState*>(memory);
  state.magic = kMagic;
  state.version = KeeperState::kVersion;
  return state;
}

std::optional<KeeperLook> look_at_keeper(pid_t keeper, const std::string& mount_point) {
  const fs::path process = "/proc/" + std::to_string(keeper);
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(process / "fd", error)) {
    const fs::path target = fs::read_symlink(entry.path(), error);
    if (!target.string().starts_with(std::string("/memfd:") + KeeperState::kName)) continue;
    if (auto look = look_at(keeper, entry.path(), mount_point)) return look;
  }
  return std::nullopt;
}

std::optional<KeeperLook> find_keeper(const std::string& mount_point) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    if (!std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; })) {
      continue;
    }
    if (first_line(entry.path() / "comm") != KeeperState::kName) continue;
    if (auto look = look_at_keeper(std::stoi(name), mount_point)) return look;
  }
  return std::nullopt;
}

}  // namespace cowfs
