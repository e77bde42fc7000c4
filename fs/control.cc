#include "fs/control.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "store/error.h"
#include "store/file.h"

namespace cowfs {

nlohmann::json ask_server(const std::string& path, const nlohmann::json& question) {
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
