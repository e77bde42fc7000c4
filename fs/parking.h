#pragma once

#include <spdlog/fwd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <thread>

namespace cowfs {

/// Requests that wait for space (I7). They hold no thread, only their data: one thread tries the
/// oldest of each image again, a few times a second, and the others of that image only once it got
/// on. So an image without space costs next to nothing and stops no other. Thread-safe.
class Parking {
 public:
  /// Tries a request again. False: there is still no space, nothing was answered; true: it was.
  /// With `give_up` it has to answer. Must not throw.
  using Retry = std::function<bool(bool give_up)>;

  /// `title_of` says what the log calls an image, "image dom1.img" say; thread-safe.
  using TitleOf = std::function<std::string(uint64_t image)>;

  Parking(spdlog::logger& log, TitleOf title_of);
  Parking(const Parking&) = delete;
  Parking& operator=(const Parking&) = delete;
  ~Parking() { finish(); }

  /// Has everything answered, and ends the thread.
  void finish();

  /// Waits with `retry` for space, which `why` says is missing. False: nothing waits any more (see
  /// end_all), and the caller is to answer.
  [[nodiscard]] bool park(uint64_t image, const char* why, Retry retry);

  /// Has all that waits answered with an error, and lets nothing wait from now on.
  void end_all();
  /// The same for one image.
  void end(uint64_t image);
  /// Whether end_all was called.
  [[nodiscard]] bool ended();

  /// How many wait, of all images or of one.
  [[nodiscard]] size_t count();
  [[nodiscard]] size_t count(uint64_t image);

 private:
  void run();
  /// Tries the image's requests in order; stops at the first that has to wait on. Has `lock` while
  /// it looks at the queue, not while it tries.
  void try_image(std::unique_lock<std::mutex>& lock, uint64_t image, bool give_up);

  spdlog::logger& log_;
  const TitleOf title_of_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::map<uint64_t, std::deque<Retry>> waiting_;
  std::set<uint64_t> ended_images_;  // numbers are not used again
  bool ended_ = false;
  bool stopping_ = false;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace cowfs
