#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fs/request_slots.h"
#include "fs/saved_init.h"

struct fuse_session;
struct fuse_lowlevel_ops;

namespace cowfs {

/// Serves a FUSE connection with threads. One in a process at a time.
class Session {
 public:
  /// `fd` is the connection's, and stays the caller's. `options` are those that it was mounted
  /// with. Each request calls its operation with `user_data`. How the connection was agreed upon is
  /// kept in the notes of `memory`, as a SavedInit; if that is of a server before this one, this
  /// one takes over from it.
  Session(int fd, const std::vector<std::string>& options, const fuse_lowlevel_ops& operations,
          void* user_data, std::shared_ptr<LiveMemory> memory);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  /// Waits for the threads.
  ~Session();

  /// Agrees upon the connection with the kernel, or as the server before did, which has to be the
  /// same. What is not answered when this server dies is to come back in the way that `resend`
  /// says; unknown: by the kernel, where it can. Taking over, it is as it was. Throws Error, before
  /// anything is read: EPROTO if this server would agree upon something else than that one did,
  /// ENOTSUP if the kernel cannot do what `resend` asks for.
  void agree(Resend resend);
  [[nodiscard]] Resend resend() const { return saved_.resend; }

  /// After `agree`, starts `threads` threads; `ended` is called once, by one of them, when the file
  /// system has been unmounted or the connection aborted, or after `stop_reading`. What the server
  /// before has read and not answered comes first.
  void start(unsigned threads, std::function<void()> ended);
  /// Lets the threads end once they have answered what they have read; the connection stays.
  void stop_reading();
  /// Waits for the threads, which end with the mount.
  void join();

 private:
  struct Destroy {
    void operator()(fuse_session* session) const noexcept;
  };

  void handle_init();
  void agree_first(Resend resend);
  void take_over();
  void serve();
  void handle(RequestSlots::Slot& left);
  void set_aside(RequestSlots::Slot& slot);

  const int fd_;
  const std::shared_ptr<LiveMemory> memory_;
  SavedInit& saved_;
  std::unique_ptr<RequestSlots> slots_;  // null: the kernel sends again
  std::unique_ptr<fuse_session, Destroy> session_;
  std::function<void()> ended_;
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> told_ = false;
  std::atomic<unsigned> running_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace cowfs
