#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/crash/disk.h"
#include "tests/crash/faults.h"
#include "tests/crash/interpose.h"

namespace cowfs::crash {

/// Records what is done to files below one directory: every change with its position, every sync
/// with two, since it makes durable what had been done when it began. Changes take effect one at a
/// time; while a sync is under way other threads go on. Thread-safe.
class Recorder final : public Interposer {
 public:
  /// Watches the calls of this process from now on, until `stop`. `root` is an empty directory, its
  /// path absolute and without links. `reflinks`: the host's file system has them, whatever it is.
  Recorder(std::string root, bool reflinks);
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;
  ~Recorder() override;

  long around(FileCall& call) override;

  /// What makes calls fail here; set before anything is under way.
  void set_faults(Faults* faults) { faults_ = faults; }

  /// A position for an event of the caller's.
  [[nodiscard]] Position mark();
  /// All that was done up to now is durable, as if sync(2) had been called.
  void settle();

  void stop();

  /// Called in the middle of each sync that the calling thread makes; null: nothing is.
  void set_during_sync(std::function<void()> action);
  /// Gives other threads many chances to run between two changes.
  void set_jumpy(bool jumpy) { jumpy_ = jumpy; }

  /// The process dies, as by SIGKILL, before the change or the end of a sync that comes after
  /// `more` others: from then on its calls change nothing, although it thinks that they do.
  void kill_after(unsigned more);
  void kill();
  [[nodiscard]] bool killed();
  /// A new process: calls count again.
  void revive();

  /// What was recorded; nothing may be under way.
  [[nodiscard]] const std::vector<Operation>& operations() const { return operations_; }

 private:
  /// Directory, name and inode (0: none) of a path below the root.
  struct Place {
    Inode directory;
    std::string name;
    Inode inode;
  };
  [[nodiscard]] bool below_root(const char* path) const;
  [[nodiscard]] Place place_of(const char* path) const;
  /// 0 if the descriptor is of nothing that is watched.
  [[nodiscard]] Inode inode_of(int fd) const;

  /// Counts a change; false if the process was killed before it.
  bool alive();
  long pretend(const FileCall& call) const;
  long change(FileCall& call);
  long change_names(FileCall& call);
  long sync(const FileCall& call, Inode inode);
  void record(Operation operation);
  long clone(const FileCall& call, Inode inode);
  void record_write(Inode inode, uint64_t offset, uint64_t length, int fd);

  const std::string root_;
  const bool reflinks_;
  Faults* faults_ = nullptr;
  std::atomic<bool> jumpy_ = false;
  std::mutex mutex_;  // guards what follows
  std::function<void()> during_sync_;
  std::thread::id during_thread_;  // whose syncs
  Position next_ = 1;
  Disk live_;
  std::map<std::pair<dev_t, ino_t>, Inode> inodes_;
  Inode last_inode_ = kRoot;
  std::vector<Operation> operations_;
  bool killed_ = false;
  unsigned lives_ = 0;  // changes until it is killed; 0: never
};

}  // namespace cowfs::crash
