#include "cmd/logging.h"

#include <fcntl.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/sinks/syslog_sink.h>
#include <syslog.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mutex>
#include <utility>

#include "cmd/command.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr const char* kPattern = "%Y-%m-%dT%H:%M:%S.%e%z %l: %*";

/// Appends to a file, each line with one write(2): nothing waits in a buffer when the process dies.
/// Thread-safe by its base.
class FileSink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit FileSink(std::string path) : path_(std::move(path)), fd_(open_file()) {
    if (fd_ < 0) throw Error{errno, "log file " + path_};
  }
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;
  ~FileSink() override { ::close(fd_); }

  /// Goes on with the old file if the new one cannot be opened.
  int reopen() {
    const std::lock_guard lock(mutex_);
    replace(open_file());
    return fd_;
  }
  void use(int fd) {
    const std::lock_guard lock(mutex_);
    replace(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    // A log that cannot be written is no reason to stop serving.
    [[maybe_unused]] const ssize_t written = ::write(fd_, line.data(), line.size());
  }
  void flush_() override {}

 private:
  void replace(int fd) {
    if (fd < 0) return;
    ::close(fd_);
    fd_ = fd;
  }
  int open_file() const {
    return ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0640);
  }

  const std::string path_;
  int fd_;
};

/// %* of a pattern: the message as %v has it, in one line, whatever names it holds.
class PrintableMessage : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& target) override {
    const std::string text = printable({message.payload.data(), message.payload.size()});
    target.append(text.data(), text.data() + text.size());
  }
  [[nodiscard]] std::unique_ptr<spdlog::custom_flag_formatter> clone() const override {
    return std::make_unique<PrintableMessage>();
  }
};

Log make_log(std::shared_ptr<spdlog::sinks::sink> sink, spdlog::level::level_enum level,
             const std::string& pattern) {
  auto logger = std::make_shared<spdlog::logger>("cowfs", std::move(sink));
  logger->set_level(level);
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<PrintableMessage>('*').set_pattern(pattern);
  logger->set_formatter(std::move(formatter));
  return {.logger = std::move(logger), .reopen = [] { return -1; }, .use = [](int) {}};
}

}  // namespace

spdlog::level::level_enum parse_log_level(const std::string& name) {
  static constexpr std::array<std::pair<std::string_view, spdlog::level::level_enum>, 5> kLevels{
      {{"trace", spdlog::level::trace},
       {"debug", spdlog::level::debug},
       {"info", spdlog::level::info},
       {"warn", spdlog::level::warn},
       {"error", spdlog::level::err}}};
  for (const auto& [text, level] : kLevels) {
    if (name == text) return level;
  }
  throw UsageError("log level " + name + ": is none of trace, debug, info, warn, error");
}

Log log_to_stderr(spdlog::level::level_enum level) {
  return make_log(std::make_shared<spdlog::sinks::stderr_sink_mt>(), level, kPattern);
}

Log log_to_syslog(spdlog::level::level_enum level) {
  // syslog(3) adds the time; the level is in the priority.
  return make_log(
      std::make_shared<spdlog::sinks::syslog_sink_mt>("cowfs", LOG_PID, LOG_DAEMON, true), level,
      "%*");
}

Log log_to_file(const std::string& path, spdlog::level::level_enum level) {
  auto sink = std::make_shared<FileSink>(path);
  Log log = make_log(sink, level, kPattern);
  log.reopen = [sink] { return sink->reopen(); };
  log.use = [sink](int fd) { sink->use(fd); };
  return log;
}

std::shared_ptr<spdlog::logger> command_logger(const std::string& command) {
  return make_log(std::make_shared<spdlog::sinks::stderr_sink_mt>(), spdlog::level::warn,
                  "cowfs " + command + ": %l: %*")
      .logger;
}

}  // namespace cowfs
