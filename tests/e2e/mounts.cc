#include "tests/e2e/mounts.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "store/host_fs.h"

namespace cowfs::e2e {
namespace {

// Kills by pidfd, so that it cannot be another process, and waits for the end.
void KillAndWait(pid_t pid) {
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (pidfd < 0) {
    return;
  }
  syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0);
  pollfd ended{pidfd, POLLIN, 0};
  poll(&ended, 1, 20'000);
  close(pidfd);
}

RunOptions Within(int seconds) { return {.timeout = std::chrono::seconds(seconds)}; }

}  // namespace

ScratchDirectory::ScratchDirectory() {
  const char* const parent = std::getenv("TMPDIR");
  std::string name = std::string(parent != nullptr ? parent : "/var/tmp") + "/cowfs-e2e-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) {
    throw std::system_error(errno, std::generic_category(), "mkdtemp " + name);
  }
  std::filesystem::permissions(name, std::filesystem::perms(0755));
  path_ = std::filesystem::canonical(name);
  // Never into anything that is still mounted below.
  undo_ = Undo([path = path_] { Execute({"rm", "-rf", "--one-file-system", path.string()}); });
}

std::string MountLine(const Path& directory) {
  return Execute({"findmnt", "-nro", "SOURCE,TARGET,FSTYPE,OPTIONS", "-M", directory.string()}).out;
}

bool IsMountPoint(const Path& directory) { return mount_at(directory.string()).has_value(); }

bool ProcessExists(pid_t pid) {
  if (kill(pid, 0) != 0) {
    return false;
  }
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const size_t after_name = text.rfind(')');
  return after_name != std::string::npos && text.compare(after_name + 2, 1, "Z") != 0;
}

Undo UnmountCowfsAtEnd(const Path& directory) {
  return Undo([directory] {
    for (int i = 0; i < 3 && IsMountPoint(directory); ++i) {
      if (Cowfs({"umount", directory.string()}, Within(30)).status != 0) {
        Execute({"umount", "-l", directory.string()}, Within(30));
      }
    }
  });
}

Mount::Mount(Path base, Path directory, Arguments arguments)
    : base_(std::move(base)), directory_(std::move(directory)), arguments_(std::move(arguments)) {
  MountAgain();
}

Mount::~Mount() {
  if (!IsMountPoint(directory_)) {
    undo_.Cancel();
    return;
  }
  const Result result = Cowfs({"umount", directory_.string()}, Within(60));
  if (result.status == 0) {
    undo_.Cancel();
  } else {
    ADD_FAILURE() << "cowfs umount at the end of the test: exit status " << result.status << ": "
                  << result.err;
  }
}

std::string Mount::MountAgain() {
  std::filesystem::create_directories(directory_);
  Arguments command{"mount", base_.string(), directory_.string()};
  command.insert(command.end(), arguments_.begin(), arguments_.end());
  undo_ = UnmountCowfsAtEnd(directory_);
  const Result result = Cowfs(command, Within(60));
  Must(result);
  if (!result.let_go) {
    throw std::runtime_error("cowfs mount: the server keeps the caller's output open");
  }
  const Json facts = CowfsJson({"info", directory_.string()});
  server_ = facts.at("server_pid").get<pid_t>();
  keeper_ = facts.at("keeper_pid").get<pid_t>();
  undo_.Cancel();
  undo_ = Undo([directory = directory_, server = server_, keeper = keeper_] {
    if (!IsMountPoint(directory)) {
      return;
    }
    if (Cowfs({"umount", directory.string()}, Within(30)).status != 0) {
      KillAndWait(keeper);
      KillAndWait(server);
      Execute({"umount", "-l", directory.string()}, Within(30));
    }
  });
  return result.err;
}

void Mount::Unmount() {
  Must(Cowfs({"umount", directory_.string()}, Within(60)));
  undo_.Cancel();
  if (IsMountPoint(directory_)) {
    throw std::runtime_error("still a mount point after cowfs umount");
  }
}

void Mount::Kill() const {
  KillAndWait(keeper_);
  KillAndWait(server_);
}

LoopDevice::LoopDevice(const Path& file, const Arguments& arguments) {
  Arguments command{"losetup", "-f", "--show"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  command.push_back(file.string());
  device_ = Must(Execute(command, Within(60)));
  device_.erase(device_.find_last_not_of('\n') + 1);
  undo_ = Undo([device = device_] {
    Execute({"losetup", "-d", device}, Within(60));
    // Detaching goes on in the background while somebody has the device open.
    const Path backing = Path("/sys/block") / Path(device).filename() / "loop/backing_file";
    Eventually([&] { return !std::filesystem::exists(backing); }, std::chrono::seconds(10));
  });
}

OtherMount::OtherMount(const std::string& device, Path directory, const Arguments& arguments)
    : directory_(std::move(directory)) {
  std::filesystem::create_directories(directory_);
  Arguments command{"mount"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  command.push_back(device);
  command.push_back(directory_.string());
  Must(Execute(command, Within(60)));
  undo_ = Undo([where = directory_] {
    if (IsMountPoint(where) && Execute({"umount", where.string()}, Within(60)).status != 0) {
      Execute({"umount", "-l", where.string()}, Within(60));
    }
  });
}

void OtherMount::Unmount() {
  // A child that another thread has just forked holds all that is open here until it execs.
  Result result;
  Eventually(
      [&] {
        result = Execute({"umount", directory_.string()}, Within(60));
        return result.status == 0 || result.err.find("busy") == std::string::npos;
      },
      std::chrono::seconds(5));
  Must(result);
  undo_.Cancel();
}

HostFileSystem::HostFileSystem(const Path& scratch, const std::string& type, uint64_t size) {
  const Path directory = scratch / type;
  if (type == "tmpfs") {
    mount_ = std::make_unique<OtherMount>(
        "tmpfs", directory, Arguments{"-t", "tmpfs", "-o", "size=" + std::to_string(size)});
    return;
  }
  const Path image = scratch / (type + ".host");
  File(image, O_WRONLY | O_CREAT | O_TRUNC).Truncate(size);
  Must(Execute({"mkfs." + type, "-q", type == "ext4" ? "-F" : "-f", image.string()}));
  device_ = std::make_unique<LoopDevice>(image);
  mount_ = std::make_unique<OtherMount>(device_->device(), directory, Arguments{"-t", type});
}

void MountTest::SetUp() {
  if (geteuid() != 0) {
    GTEST_SKIP() << "needs root: mounts file systems and attaches loop devices";
  }
  if (access("/dev/fuse", R_OK | W_OK) != 0) {
    GTEST_SKIP() << "needs /dev/fuse";
  }
  if (access("/dev/loop-control", R_OK | W_OK) != 0) {
    GTEST_SKIP() << "needs loop devices (/dev/loop-control)";
  }
}

Bytes MountTest::MakeBase(uint64_t size, uint32_t seed) const {
  Bytes bytes = RandomBytes(size, seed);
  WriteFile(Base(), bytes);
  return bytes;
}

std::unique_ptr<Mount> MountTest::MountBase(const Arguments& arguments) const {
  return std::make_unique<Mount>(Base(), MountPoint(), arguments);
}

void Touch(const Path& path) { Must(Execute({"touch", path.string()})); }

}  // namespace cowfs::e2e
