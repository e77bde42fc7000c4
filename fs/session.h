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

/// A FUSE mount and the threads that serve it.
class Session {
 public:
  /// Mounts on `mount_point`. `options` are libfuse's and mount(2)'s, "ro" say. Each request calls
  /// its operation with `user_data`. Throws Error with what the kernel or fusermount3 said.
  Session(const std::string& mount_point, const std::vector<std::string>& options,
          const fuse_lowlevel_ops& operations, void* user_data);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  /// Unmounts if it is mounted still.
  ~Session();

  /// Starts `threads` threads; `ended` is called once, by one of them, when the file system has
  /// been unmounted or the connection aborted.
  void start(unsigned threads, std::function<void()> ended);
  /// Waits for the threads, which end with the mount.
  void join();

 private:
  struct Destroy {
    void operator()(fuse_session* session) const noexcept;
  };

  void serve();

  std::unique_ptr<fuse_session, Destroy> session_;
  std::function<void()> ended_;
  std::atomic<bool> told_ = false;
  std::vector<std::thread> threads_;
};

/// An option for libfuse with commas and backslashes of `value` escaped: "fsname=/srv/a\,b".
std::string fuse_option(const std::string& name, const std::string& value);

}  // namespace cowfs
