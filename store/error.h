#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace cowfs {

/// The one exception type of cowfs: an errno value and one sentence "what: on what: why".
/// `store/` throws it; `fs/reply` turns it into an errno for the kernel, `cmd/main` into a message.
class Error : public std::runtime_error {
 public:
  /// Message is `context: strerror(code)`. With errno it is to be called in braces, Error{errno,
  /// ...}: in parentheses the context may be made first, and memory for it may change errno.
  Error(int code, const std::string& context);

  /// Message is `message` as it stands; `code` is the errno that it stands for.
  static Error with_message(int code, const std::string& message) { return {message, code}; }

  /// An errno value, never 0.
  [[nodiscard]] int code() const noexcept { return code_; }

 private:
  Error(const std::string& message, int code) : std::runtime_error(message), code_(code) {}

  int code_;
};

/// Whether an errno value says that there is no space (left, or allowed).
bool is_no_space(int code);
/// Whether the process, or the system, has as many files open as it may.
bool is_no_descriptor(int code);

/// What `message` says without `subject` and a colon in front of it, if it begins so: for who has
/// named the subject already.
std::string_view without_subject(std::string_view message, std::string_view subject);

/// strerror(3), thread-safe.
std::string error_text(int code);

/// Runs `work` and lets nothing out that it throws: for threads and answers that have to go on,
/// also where there is no memory, not even for an Error. False if it threw.
template <typename Work>
bool attempt(const Work& work) noexcept {
  try {
    work();
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace cowfs
