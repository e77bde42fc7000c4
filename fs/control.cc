#include "fs/control.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>

#include "store/error.h"
#include "store/file.h"
#include "store/host_fs.h"

namespace cowfs {

namespace {

nlohmann::json ask(const std::string& path, const nlohmann::json& question) {
  const File file(path, O_RDONLY | O_NONBLOCK);
  ControlMessage message{};
  pack(question, message);
  if (::ioctl(file.fd(), kControlRequest, &message) != 0) {
    const int code = errno == EINVAL || errno == ENOSYS ? ENOTTY : errno;
    if (code == ENOTTY) throw Error::with_message(ENOTTY, path + ": is not in a cowfs mount");
    const char* who = code == EPERM    ? "; only root and the user that mounted it may ask for that"
                      : code == EACCES ? "; only who may write to the image may ask for that"
                                       : "";
    throw Error::with_message(code, "ask the server of " + path + ": " + error_text(code) + who);
  }
  return unpack(message);
}

/// Who made the FUSE mount that `path` is, or is in: "user_id", or his "group_id".
std::optional<unsigned> id_of_mount(const std::string& path, const std::string& which) {
  std::optional<MountEntry> mount = mount_at(path);
  if (!mount) mount = mount_at(std::filesystem::path(path).parent_path());
  if (!mount) return std::nullopt;
  const std::string options = "," + mount->file_system_options;
  const size_t at = options.find("," + which + "=");
  if (at == std::string::npos) return std::nullopt;
  return static_cast<unsigned>(std::strtoul(options.c_str() + at + which.size() + 2, nullptr, 10));
}

/// As another user, in a thread that is his: there is no way back.
nlohmann::json ask_as(unsigned user, unsigned group, const std::string& path,
                      const nlohmann::json& question) {
  return std::async(std::launch::async,
                    [&] {
                      // The system calls, since the C library's functions are for all threads.
                      if (::syscall(SYS_setgroups, 0, nullptr) != 0 ||
                          ::syscall(SYS_setresgid, group, group, group) != 0 ||
                          ::syscall(SYS_setresuid, user, user, user) != 0) {
                        throw Error{errno, "become user " + std::to_string(user)};
                      }
                      return ask(path, question);
                    })
      .get();
}

}  // namespace

nlohmann::json ask_server(const std::string& path, const nlohmann::json& question) {
  try {
    return ask(path, question);
  } catch (const Error& error) {
    if (error.code() != EACCES || ::geteuid() != 0) throw;
    // The kernel keeps root out of a mount that a user made for himself (allow_root, allow_other).
    const std::optional<unsigned> user = id_of_mount(path, "user_id");
    const std::optional<unsigned> group = id_of_mount(path, "group_id");
    if (!user || !group || *user == 0) throw;
    return ask_as(*user, *group, path, question);
  }
}

nlohmann::json ask_server(const std::string& path) { return ask_server(path, {{"ask", "info"}}); }

void pack(const nlohmann::json& json, ControlMessage& message) {
  // Names may hold bytes that are no UTF-8; JSON cannot.
  const std::string text = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() >= message.text.size()) throw Error(EMSGSIZE, "control message");
  std::copy(text.begin(), text.end(), message.text.begin());
  message.text[text.size()] = '\0';
}

nlohmann::json unpack(const ControlMessage& message) {
  const auto end = std::find(message.text.begin(), message.text.end(), '\0');
  nlohmann::json json = nlohmann::json::parse(message.text.begin(), end, nullptr, false);
  if (!json.is_object()) throw Error(EINVAL, "control message");
  return json;
}

}  // namespace cowfs
