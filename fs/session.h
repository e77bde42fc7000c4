#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

struct fuse_session;
struct fuse_lowlevel_ops;

namespace cowfs {

struct SavedInit;

/// Serves a FUSE connection with threads. One in a process at a time.
class Session {
 public:
  /// `fd` is the connection's, and stays the caller's. `options` are those that it was mounted
  /// with. Each request calls its operation with `user_data`. How the connection was agreed upon is
  /// kept in `saved`; if it holds that of a server before this one, this one takes over from it.
  Session(int fd, const std::vector<std::string>& options, const fuse_lowlevel_ops& operations,
          void* user_data, SavedInit& saved);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  /// Waits for the threads.
  ~Session();

  /// Starts `threads` threads; `ended` is called once, by one of them, when the file system has
  /// been unmounted or the connection aborted, or after `stop_reading`. Taking over, what the
  /// server before has read and not answered is asked for again first. Throws Error EPROTO, before
  /// anything is read, if this server would agree upon something else than that one did.
  void start(unsigned threads, std::function<void()> ended);
  /// Whether the kernel is one from which another server could take the connection over; once
  /// FUSE_INIT was answered.
  [[nodiscard]] bool can_be_taken_over() const;
  /// Lets the threads end once they have answered what they have read; the connection stays.
  void stop_reading();
  /// Waits for the threads, which end with the mount.
  void join();

 private:
  struct Destroy {
    void operator()(fuse_session* session) const noexcept;
  };

  void replay_init();
  void serve();

  const int fd_;
  SavedInit& saved_;
  std::unique_ptr<fuse_session, Destroy> session_;
  std::function<void()> ended_;
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> told_ = false;
  std::atomic<unsigned> running_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace cowfs
