#include "store/store_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <sstream>
#include <thread>

#include "store/error.h"
#include "store/host_fs.h"

namespace cowfs {
namespace {

constexpr std::chrono::seconds kPatience{30};

/// The file's text: one `key value` a line.
std::string text_of(const Holder& holder) {
  return "pid " + std::to_string(holder.pid) + "\n" + "mount " + holder.mount + "\n" + "state " +
         (holder.ending ? "ending" : "open") + "\n";
}

Holder read_holder(const File& file) {
  std::array<std::byte, 8192> buffer{};
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

Error in_use(const std::string& directory, const Holder& holder, bool patient) {
  return Error::with_message(
      EBUSY, "store " + directory + ": in use by process " + std::to_string(holder.pid) +
                 (holder.mount.empty() ? "" : ", mounted on " + holder.mount) +
                 (patient ? "" : ", which has been ending for 30 s"));
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

StoreLock::StoreLock(const std::string& directory, const Holder& self)
    : file_(lock_path(directory), O_RDWR | O_CREAT | O_NOFOLLOW, 0600) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!file_.try_lock()) {
    const Holder holder = read_holder(file_);
    const bool patient = std::chrono::steady_clock::now() < deadline;
    if (!will_end(holder) || !patient) {
      throw in_use(directory, holder, patient);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  announce(self);
}

void StoreLock::announce(const Holder& self) const {
  const std::string text = text_of(self);
  file_.truncate(0);
  file_.write(std::as_bytes(std::span(text)), 0);
}

std::optional<Holder> StoreLock::holder(const std::string& directory) {
  return StoreLook(directory).holder();
}

StoreLook::StoreLook(const std::string& directory) {
  if (::access(lock_path(directory).c_str(), F_OK) != 0) return;
  // What a stranger calls lock may be a pipe, which is not to be waited for (I10).
  file_.emplace(lock_path(directory), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  if (!file_->try_lock()) holder_ = read_holder(*file_);
}

}  // namespace cowfs
