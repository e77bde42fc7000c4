#pragma once

#include <spdlog/fwd.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "store/image.h"
#include "store/reserve.h"

namespace cowfs {

/// The background thread of a store: commits what has changed every 2 s, so that less than 5 s of
/// changes are lost by who never flushes (I11), closes images that nobody uses, makes the catalog's
/// reserve whole again, and moves SQLite's write-ahead log into the catalog, off the flush path.
class Committer {
 public:
  using ListImages = std::function<std::vector<std::shared_ptr<Image>>()>;

  Committer(Catalog& catalog, Reserve& reserve, ListImages list, spdlog::logger& log);
  Committer(const Committer&) = delete;
  Committer& operator=(const Committer&) = delete;
  /// Ends the thread; the last round may be missing.
  ~Committer();

 private:
  void run();
  void commit_all();
  void checkpoint();

  Catalog& catalog_;
  Reserve& reserve_;
  const ListImages list_;
  spdlog::logger& log_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  bool checkpoint_due_ = false;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace cowfs
