// A server that takes over a connection
//
// The kernel sends FUSE_INIT once. The first server keeps the request and its reply; one that takes
// over is handed the saved request by read_request, as if it came from the kernel, and its reply
// goes nowhere: it has to be the saved one, since the kernel holds to that.
//
// Then the kernel is told to send again what was read and not answered (FUSE_NOTIFY_RESEND, Linux
// 6.9). Such a request carries a bit in its number, which its reply has to carry too. An older
// kernel cannot: there each thread reads into a slot of memory that the next server sees.

#include "fs/session.h"

#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <span>
#include <utility>

#include "fs/libfuse_log.h"
#include "fs/request.h"
#include "fs/request_buffer.h"
#include "fs/resend.h"
#include "fs/server_notes.h"
#include "store/error.h"
#include "store/stop_point.h"

namespace cowfs {
namespace {

/// Ends a thread's wait for requests; its handler does nothing.
const int kWakeSignal = SIGUSR2;

thread_local Request in_hand;

RequestSlots* all_slots = nullptr;                    // of the connection, if there are any
thread_local RequestSlots::Slot* own_slot = nullptr;  // into which this thread reads

// INIT is the first request of a connection and there is one connection in a process.
enum class Stage {
  fresh,      // INIT is to come from the kernel
  replaying,  // INIT is to come from SavedInit
  differs,    // it was answered otherwise than before
  agreed,
};
std::atomic<Stage> stage = Stage::fresh;
SavedInit* saved_init = nullptr;

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

using ReplyBytes = std::array<std::byte, sizeof(fuse_out_header) + sizeof(fuse_init_out)>;
static_assert(sizeof(ReplyBytes) <= sizeof(SavedInit::reply));

ReplyBytes bytes_of(std::span<const iovec> reply) {
  ReplyBytes bytes{};
  std::memcpy(bytes.data(), reply[0].iov_base, reply[0].iov_len);
  std::memcpy(bytes.data() + reply[0].iov_len, reply[1].iov_base, reply[1].iov_len);
  return bytes;
}

void save_reply(const ReplyBytes& bytes) {
  std::memcpy(saved_init->reply.data(), bytes.data(), bytes.size());
  std::atomic_ref(saved_init->reply_size).store(static_cast<uint32_t>(bytes.size()));
}

ssize_t write_reply(int fd, iovec* vector, int count, void* /*user_data*/) {
  const std::span reply(vector, static_cast<size_t>(count));
  const Stage now = stage.load(std::memory_order_acquire);
  fuse_init_out changed{};
  if (now != Stage::agreed && is_init_reply(reply)) {
    add_init_flags(reply, changed);
    const ReplyBytes bytes = bytes_of(reply);
    if (now == Stage::replaying) {
      const bool same = saved_init->reply_size == bytes.size() &&
                        std::memcmp(saved_init->reply.data(), bytes.data(), bytes.size()) == 0;
      stage = same ? Stage::agreed : Stage::differs;
      return static_cast<ssize_t>(bytes.size());
    }
    save_reply(bytes);
    stage = Stage::agreed;
  }
  if (all_slots != nullptr) return all_slots->answer(own_slot, reply);
  stop_point(StopPoint::answer_not_sent);
  const ssize_t written = ::writev(fd, vector, count);
  stop_point(StopPoint::answer_sent);
  return written;
}

ssize_t read_request(int fd, void* buffer, size_t size, void* /*user_data*/) {
  if (stage.load(std::memory_order_acquire) == Stage::replaying) {
    std::memcpy(buffer, saved_init->request.data(), saved_init->request_size);
    return saved_init->request_size;
  }
  const ssize_t count = ::read(fd, buffer, size);
  if (count < static_cast<ssize_t>(sizeof(fuse_in_header))) return count;
  const auto& header = *static_cast<const fuse_in_header*>(buffer);
  stop_point(StopPoint::request_read);
  in_hand = {.number = header.unique & ~kSentAgain, .again = (header.unique & kSentAgain) != 0};
  if (header.opcode == FUSE_INIT && static_cast<size_t>(count) <= saved_init->request.size()) {
    std::memcpy(saved_init->request.data(), buffer, static_cast<size_t>(count));
    saved_init->request_size = static_cast<uint32_t>(count);
  }
  return count;
}

void ignore_signal(int /*signal*/) {}

}  // namespace

Request current_request() { return in_hand; }

void Session::Destroy::operator()(fuse_session* session) const noexcept {
  fuse_session_destroy(session);
}

Session::Session(int fd, const std::vector<std::string>& options,
                 const fuse_lowlevel_ops& operations, void* user_data,
                 std::shared_ptr<LiveMemory> memory)
    : fd_(fd), memory_(std::move(memory)), saved_(server_notes(*memory_).init) {
  const LibfuseMessages messages;
  const auto fail = [&] {
    const std::string& text = messages.text();
    throw Error::with_message(EPERM, "serve" + (text.empty() ? "" : ": " + text));
  };
  fuse_args arguments = FUSE_ARGS_INIT(0, nullptr);
  fuse_opt_add_arg(&arguments, "cowfs");
  for (const std::string& option : options) {
    fuse_opt_add_arg(&arguments, ("-o" + option).c_str());
  }
  session_.reset(fuse_session_new(&arguments, &operations, sizeof(operations), user_data));
  fuse_opt_free_args(&arguments);
  if (session_ == nullptr) fail();

  const fuse_custom_io io{.writev = write_reply,
                          .read = read_request,
                          .splice_receive = nullptr,
                          .splice_send = nullptr};
  // libfuse closes what it is given.
  const int own = ::dup(fd);
  if (own < 0) throw Error{errno, "serve"};
  if (fuse_session_custom_io(session_.get(), &io, own) != 0) {
    ::close(own);
    fail();
  }
  saved_init = &saved_;
  stage = saved_.reply_size > 0 ? Stage::replaying : Stage::fresh;
  struct sigaction action {};
  action.sa_handler = ignore_signal;  // without SA_RESTART: read(2) ends with EINTR
  ::sigaction(kWakeSignal, &action, nullptr);
}

Session::~Session() {
  join();
  all_slots = nullptr;
}

void Session::handle_init() {
  RequestBuffer memory;
  fuse_buf request{};
  request.mem = memory.memory();
  int size = 0;
  while ((size = fuse_session_receive_buf(session_.get(), &request)) == -EINTR) {
  }
  if (size > 0) fuse_session_process_buf(session_.get(), &request);
}

void Session::agree_first(Resend resend) {
  handle_init();
  if (stage != Stage::agreed) {
    throw Error::with_message(EPROTO,
                              "mount: the kernel and this program do not agree (FUSE_INIT)");
  }
  fuse_init_in init{};
  const bool whole = saved_.request_size >= sizeof(fuse_in_header) + sizeof(init);
  if (whole) std::memcpy(&init, saved_.request.data() + sizeof(fuse_in_header), sizeof(init));
  const bool kernel_can = (init.flags & FUSE_INIT_EXT) != 0 && (init.flags2 & kHasResend) != 0;
  if (resend == Resend::kernel && !kernel_can) {
    throw Error::with_message(ENOTSUP,
                              "mount option 'resend=kernel': this kernel does not send requests "
                              "again (Linux 6.9 does); leave the option out");
  }
  if (resend == Resend::unknown) resend = kernel_can ? Resend::kernel : Resend::slots;
  std::atomic_ref(saved_.resend).store(resend);
  if (resend == Resend::slots) slots_ = std::make_unique<RequestSlots>(memory_, fd_);
}

void Session::take_over() {
  stop_point(StopPoint::taking_over);
  if (saved_.request_size < sizeof(fuse_in_header) + sizeof(fuse_init_in) ||
      saved_.request_size > saved_.request.size()) {
    throw Error::with_message(EPROTO, "take over: what was saved of FUSE_INIT is damaged");
  }
  handle_init();
  if (stage != Stage::agreed) {
    throw Error::with_message(EPROTO,
                              "take over: this program would agree upon other things with the "
                              "kernel (FUSE_INIT) than the one that mounted; mount anew for it");
  }
  // Nobody else reads or answers any more.
  if (saved_.resend == Resend::slots) {
    slots_ = std::make_unique<RequestSlots>(memory_, fd_);
    return;
  }
  const int code = ask_to_send_again(fd_);
  if (code != 0 && code != ENODEV && code != EPERM) {
    throw Error(code, "take over: ask the kernel to send requests again");
  }
}

void Session::agree(Resend resend) {
  if (stage == Stage::replaying) {
    take_over();
    stop_point(StopPoint::taken_over);
  } else {
    agree_first(resend);
  }
  all_slots = slots_.get();
}

void Session::start(unsigned threads, std::function<void()> ended) {
  ended_ = std::move(ended);
  for (unsigned i = 0; i < threads; ++i) {
    ++running_;
    threads_.emplace_back([this] { serve(); });
  }
}

void Session::stop_reading() {
  stopping_ = true;
  // A thread may be about to read when the signal comes: until all are out.
  while (running_.load() > 0) {
    for (std::thread& thread : threads_) ::pthread_kill(thread.native_handle(), kWakeSignal);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  stop_point(StopPoint::handing_over);
}

void Session::join() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Session::handle(RequestSlots::Slot& left) {
  fuse_buf request{};
  request.mem = RequestSlots::buffer(left);
  const auto& header = *static_cast<const fuse_in_header*>(request.mem);
  request.size = header.len;
  in_hand = {.number = header.unique, .again = true};
  fuse_session_process_buf(session_.get(), &request);
}

void Session::set_aside(RequestSlots::Slot& slot) {
  while (true) {
    try {
      return slots_->set_aside(slot);
    } catch (const std::exception&) {
      // No memory. This thread cannot go on before there is some, or the request is answered.
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
}

void Session::serve() {
  own_slot = slots_ == nullptr ? nullptr : &slots_->slot_for_reading();
  const RequestBuffer memory =
      own_slot == nullptr ? RequestBuffer() : RequestBuffer(RequestSlots::buffer(*own_slot));
  while (slots_ != nullptr && !stopping_) {
    RequestSlots::Slot* const left = slots_->next_left();
    if (left == nullptr) break;
    handle(*left);
  }
  fuse_buf request{};
  request.mem = memory.memory();
  while (!stopping_ && fuse_session_exited(session_.get()) == 0) {
    const int size = fuse_session_receive_buf(session_.get(), &request);
    if (size == -EINTR || size == -EAGAIN) continue;
    if (size <= 0) break;
    fuse_session_process_buf(session_.get(), &request);
    if (own_slot != nullptr) set_aside(*own_slot);
  }
  if (!stopping_) fuse_session_exit(session_.get());
  --running_;
  if (!told_.exchange(true)) ended_();
}

}  // namespace cowfs
