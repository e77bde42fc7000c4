#pragma once

#include <string>

namespace cowfs {

/// While one of these lives, what libfuse says in this thread is kept for a message of ours. What
/// it says otherwise is a line of the log, from the first of these on.
class LibfuseMessages {
 public:
  LibfuseMessages();
  LibfuseMessages(const LibfuseMessages&) = delete;
  LibfuseMessages& operator=(const LibfuseMessages&) = delete;
  ~LibfuseMessages();

  /// All that was said, in one line.
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace cowfs
