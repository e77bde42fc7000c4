#include "store/store_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "store/error.h"
#include "store/host_fs.h"

namespace cowfs {
namespace {

constexpr std::chrono::seconds kPatience{30};
/// Bytes of the file that are looked at.
constexpr size_t kMostText = 8192;
/// Longer than a look at a store takes, and than the time between its two locks.
constexpr std::chrono::seconds kPatienceWithNobody{2};

/// The file's text: one `key value` a line.
std::string text_of(const Holder& holder) {
  return "pid " + std::to_string(holder.pid) + "\n" + "mount " + holder.mount + "\n" + "state " +
         (holder.ending ? "ending" : "open") + "\n";
}

Holder read_holder(const File& file) {
  std::array<std::byte, kMostText> buffer{};
  const size_t size = file.read(buffer, 0);
  return parse_holder({reinterpret_cast<const char*>(buffer.data()), size});
}

/// Whether waiting is worth while. After a plain umount(8) the mount is gone before the server
/// comes to say that it is ending. A process that is gone was an earlier holder: who has the lock
/// now has yet to say so, or only looks who has it.
bool will_end(const Holder& holder) {
  if (holder.ending || holder.mount.empty() || !mount_at(holder.mount)) return true;
  return ::kill(holder.pid, 0) != 0 && errno == ESRCH;
}

std::string lock_path(const std::string& directory) { return directory + "/lock"; }

/// The process with a flock(2) on an open directory, from /proc/locks (proc(5)); 0: the kernel does
/// not say, as on file systems whose device number there is another than stat's.
pid_t locker_of(const File& directory) {
  const struct stat status = directory.status();
  const std::string id =
      fmt::format("{:02x}:{:02x}:{}", major(status.st_dev), minor(status.st_dev), status.st_ino);
  std::ifstream locks("/proc/locks");
  for (std::string line; std::getline(locks, line);) {
    std::istringstream words(line);
    std::string number;
    std::string kind;
    std::string mode;
    std::string access;
    std::string file;
    pid_t pid = 0;
    words >> number >> kind >> mode >> access >> pid >> file;
    if (kind == "FLOCK" && file == id && pid > 0) return pid;
  }
  return 0;
}

/// Who has the lock on the directory, as far as it can be told.
struct Occupant {
  Holder holder;
  bool named;  ///< by its file; not if that was removed or replaced, and for the moment of a look
};

Occupant occupant_of(const File& directory) {
  try {
    // What a stranger calls lock may be a pipe, which is not to be waited for (I10).
    const File file(lock_path(directory.path()), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    if (!file.try_lock()) {
      Holder holder = read_holder(file);
      if (holder.pid == 0) holder.pid = locker_of(directory);
      return {holder, true};
    }
  } catch (const Error& error) {
    if (error.code() != ENOENT && error.code() != ELOOP && error.code() != ENXIO) throw;
  }
  return {Holder{.pid = locker_of(directory), .mount = "", .ending = false}, false};
}

std::string name_of(const Holder& holder) {
  return (holder.pid > 0 ? "process " + std::to_string(holder.pid) : std::string("a process")) +
         (holder.mount.empty() ? "" : ", mounted on " + holder.mount);
}

}  // namespace

Holder parse_holder(const std::string& text) {
  std::istringstream lines(text);
  Holder holder;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("pid ")) std::istringstream(line.substr(4)) >> holder.pid;
    if (line.starts_with("mount ")) holder.mount = line.substr(6);
    if (line == "state ending") holder.ending = true;
  }
  return holder;
}

StoreLock::StoreLock(const std::string& directory, const Holder& self, const HeldLock& held)
    : directory_(held.directory ? File::copy_of(*held.directory, directory)
                                : File(directory, O_RDONLY | O_DIRECTORY)) {
  if (held.directory && held.file) {
    file_ = File::copy_of(*held.file, lock_path(directory));
    announce(self);
    return;
  }
  const auto started = std::chrono::steady_clock::now();
  while (true) {
    // An older cowfs locks the file alone.
    if (!file_ && directory_.try_lock()) {
      file_.emplace(lock_path(directory), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0600);
      const struct stat status = file_->status();
      // It is written to: another name of somebody's file is not.
      if (!S_ISREG(status.st_mode) || status.st_nlink != 1) {
        throw Error::with_message(EINVAL, "store " + directory +
                                              ": its file `lock` is no regular file of its own; "
                                              "remove it while nobody uses the store");
      }
    }
    if (file_ && file_->try_lock()) break;
    const Occupant occupant = file_ ? Occupant{read_holder(*file_), true} : occupant_of(directory_);
    const auto waited = std::chrono::steady_clock::now() - started;
    const bool patient = waited < (occupant.named ? kPatience : kPatienceWithNobody);
    if (occupant.named && (!will_end(occupant.holder) || !patient)) {
      throw Error::with_message(EBUSY, "store " + directory + ": in use by " +
                                           name_of(occupant.holder) +
                                           (patient ? "" : ", which has been ending for 30 s"));
    }
    if (!patient) {
      throw Error::with_message(EBUSY, "store " + directory + ": in use by " +
                                           name_of(occupant.holder) +
                                           ", whose file `lock` was removed or replaced");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  announce(self);
}

void StoreLock::announce(const Holder& self) const {
  std::string text = text_of(self);
  const size_t length = text.size();
  // In place, since a full disk may have no block to give; and over all of the old text at once,
  // since others read it meanwhile.
  text.resize(std::clamp<size_t>(file_->size(), length, std::max(length, kMostText)), '\n');
  try {
    file_->write(std::as_bytes(std::span(text)), 0);
    file_->truncate(length);
  } catch (const Error& error) {
    if (!is_no_space(error.code())) throw;
  }
}

std::optional<Holder> StoreLock::holder(const std::string& directory) {
  return StoreLook(directory).holder();
}

StoreLook::StoreLook(const std::string& directory) : directory_(directory, O_RDONLY | O_DIRECTORY) {
  if (!directory_.try_lock()) {
    holder_ = occupant_of(directory_).holder;
    return;
  }
  if (::access(lock_path(directory).c_str(), F_OK) != 0) return;
  file_.emplace(lock_path(directory), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  if (!file_->try_lock()) holder_ = read_holder(*file_);
}

}  // namespace cowfs
