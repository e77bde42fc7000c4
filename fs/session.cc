#include "fs/session.h"

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <spdlog/spdlog.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <span>
#include <utility>

#include "fs/request_buffer.h"
#include "store/error.h"

namespace cowfs {
namespace {

/// What libfuse says while it mounts, to be put into our own message. libfuse's log function has no
/// argument of ours, hence a variable.
thread_local std::string* mount_messages = nullptr;

void log_line(std::string line) {
  while (line.ends_with('\n')) line.pop_back();
  if (mount_messages != nullptr) {
    *mount_messages += (mount_messages->empty() ? "" : "; ") + line;
  } else {
    spdlog::warn("libfuse: {}", line);
  }
}

void log_libfuse(fuse_log_level /*level*/, const char* format, va_list arguments) {
  std::array<char, 512> text{};
  std::vsnprintf(text.data(), text.size(), format, arguments);
  attempt([&] { log_line(text.data()); });
}

/// Adds FUSE_HANDLE_KILLPRIV_V2 to the INIT reply, which libfuse 3.14 does not know. It says that
/// set-id bits and file capabilities never survive a write here, which is so: images have neither.
/// Without it the kernel asks for security.capability before every single write(2).
void add_init_flags(std::span<iovec> reply, fuse_init_out& changed) {
  changed = *static_cast<const fuse_init_out*>(reply[1].iov_base);
  changed.flags |= FUSE_HANDLE_KILLPRIV_V2;
  reply[1].iov_base = &changed;
}

bool is_init_reply(std::span<const iovec> reply) {
  return reply.size() == 2 && reply[0].iov_len == sizeof(fuse_out_header) &&
         reply[1].iov_len == sizeof(fuse_init_out) &&
         static_cast<const fuse_out_header*>(reply[0].iov_base)->error == 0;
}

ssize_t write_reply(int fd, iovec* vector, int count, void* /*user_data*/) {
  // INIT is the first request of a connection and there is one connection in a process.
  static std::atomic<bool> init_answered = false;
  const std::span reply(vector, static_cast<size_t>(count));
  fuse_init_out changed{};
  if (!init_answered.load(std::memory_order_relaxed) && is_init_reply(reply)) {
    init_answered = true;
    add_init_flags(reply, changed);
  }
  return ::writev(fd, vector, count);
}

ssize_t read_request(int fd, void* buffer, size_t size, void* /*user_data*/) {
  return ::read(fd, buffer, size);
}

void require_fuse_device() {
  const int fd = ::open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (fd >= 0) {
    ::close(fd);
    return;
  }
  const int code = errno;
  std::string hint;
  if (code == ENOENT || code == ENODEV || code == ENXIO) {
    hint = "; the kernel module 'fuse' is missing (modprobe fuse)";
  } else if (code == EACCES || code == EPERM) {
    hint = "; only root may mount here: others can where its mode is 0666, as is usual";
  }
  throw Error::with_message(code, "open /dev/fuse: " + error_text(code) + hint);
}

}  // namespace

void Session::Destroy::operator()(fuse_session* session) const noexcept {
  fuse_session_destroy(session);
}

Session::Session(const std::string& mount_point, const std::vector<std::string>& options,
                 const fuse_lowlevel_ops& operations, void* user_data) {
  require_fuse_device();
  std::string messages;
  mount_messages = &messages;
  fuse_set_log_func(log_libfuse);
  const auto fail = [&](const std::string& what) {
    mount_messages = nullptr;
    throw Error::with_message(EPERM, what + (messages.empty() ? "" : ": " + messages));
  };

  fuse_args arguments = FUSE_ARGS_INIT(0, nullptr);
  fuse_opt_add_arg(&arguments, "cowfs");
  for (const std::string& option : options) {
    fuse_opt_add_arg(&arguments, ("-o" + option).c_str());
  }
  session_.reset(fuse_session_new(&arguments, &operations, sizeof(operations), user_data));
  fuse_opt_free_args(&arguments);
  if (session_ == nullptr) fail("mount " + mount_point);
  if (fuse_session_mount(session_.get(), mount_point.c_str()) != 0) fail("mount " + mount_point);

  const fuse_custom_io io{.writev = write_reply,
                          .read = read_request,
                          .splice_receive = nullptr,
                          .splice_send = nullptr};
  if (fuse_session_custom_io(session_.get(), &io, fuse_session_fd(session_.get())) != 0) {
    fail("serve " + mount_point);
  }
  mount_messages = nullptr;
}

Session::~Session() {
  // Does nothing if the connection has ended, also where something else is mounted there by now.
  fuse_session_unmount(session_.get());
  join();
}

void Session::start(unsigned threads, std::function<void()> ended) {
  ended_ = std::move(ended);
  for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { serve(); });
}

void Session::join() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Session::serve() {
  RequestBuffer memory;
  fuse_buf request{};
  request.mem = memory.memory();
  while (fuse_session_exited(session_.get()) == 0) {
    const int size = fuse_session_receive_buf(session_.get(), &request);
    if (size == -EINTR || size == -EAGAIN) continue;
    if (size <= 0) break;
    fuse_session_process_buf(session_.get(), &request);
  }
  fuse_session_exit(session_.get());
  if (!told_.exchange(true)) ended_();
}

std::string fuse_option(const std::string& name, const std::string& value) {
  std::string option = name + "=";
  for (const char c : value) {
    if (c == ',' || c == '\\') option += '\\';
    option += c;
  }
  return option;
}

}  // namespace cowfs
