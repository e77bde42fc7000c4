#pragma once

#include <spdlog/fwd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <latch>
#include <string>
#include <thread>

#include "store/descriptor.h"
#include "store/file.h"

namespace cowfs {

/// Notices who writes to a file of the base while it is in use (I1).
///
/// Of a file it holds a read lease (fcntl(2), F_SETLEASE), on a descriptor of its own: an open(2)
/// for writing and a truncate(2) wait until the lease is given up, which is done at once, before
/// anything else. Where there are no leases (block devices, some file systems, a base of another
/// user without CAP_LEASE) inotify(7) tells of writes and closes under the name by which the base
/// was opened; what goes another way is not seen. Readers never cause an alarm, so any number of
/// watches can be on one base.
///
/// After an alarm there is none for a while, the pause: a base that is written to at length must
/// not fill the log. Then it is watched again, or as soon as the writer has closed it.
class BaseWatch {
 public:
  /// Told what was seen, for people: "was opened for writing". Called by the watch's thread,
  /// of a writer that was there before also while the constructor runs; must not throw.
  using Alarm = std::function<void(const std::string& what)>;

  /// Watches when it returns. `file` need not outlive it. Logs once what it cannot watch; that is
  /// no error.
  BaseWatch(const File& file, Alarm alarm, spdlog::logger& log,
            std::chrono::milliseconds pause = std::chrono::seconds(10));
  BaseWatch(const BaseWatch&) = delete;
  BaseWatch& operator=(const BaseWatch&) = delete;
  ~BaseWatch();

 private:
  enum class Way { none, lease, events };

  void run();
  /// Begins to watch if nobody has the base open for writing.
  void arm();
  /// Whether a writer was seen since `arm`.
  bool seen();
  void disarm();
  void say_once(const std::string& what);

  const Alarm alarm_;
  spdlog::logger& log_;
  const std::chrono::milliseconds pause_;
  const File file_;
  const Descriptor events_;
  const std::string name_;
  int event_watch_ = -1;
  Way way_ = Way::none;
  bool writer_known_ = false;  // the one that keeps us from watching
  bool said_ = false;
  std::atomic<bool> stopping_ = false;
  std::latch started_{1};
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace cowfs
