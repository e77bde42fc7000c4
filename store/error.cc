#include "store/error.h"

#include <cerrno>
#include <system_error>

namespace cowfs {

Error::Error(int code, const std::string& context)
    : Error(context + ": " + error_text(code), code) {}

bool is_no_space(int code) { return code == ENOSPC || code == EDQUOT; }

bool is_no_descriptor(int code) { return code == EMFILE || code == ENFILE; }

std::string_view without_subject(std::string_view message, std::string_view subject) {
  if (message.starts_with(subject) && message.substr(subject.size()).starts_with(": ")) {
    message.remove_prefix(subject.size() + 2);
  }
  return message;
}

std::string error_text(int code) { return std::generic_category().message(code); }

}  // namespace cowfs
