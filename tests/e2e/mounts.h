#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/e2e/command.h"
#include "tests/e2e/data.h"
#include "tests/e2e/undo.h"

// What a test puts on the machine: directories, mounts, loop devices. Each is gone again when its
// object is, also when the test fails or the program is told to end.
namespace cowfs::e2e {

// A directory under $TMPDIR or /var/tmp (not /tmp, which may be a tmpfs).
class ScratchDirectory {
 public:
  ScratchDirectory();
  const Path& path() const { return path_; }

 private:
  Path path_;
  Undo undo_;
};

// True when something is mounted on exactly this directory. Does not touch what is mounted there,
// which may be dead.
bool IsMountPoint(const Path& directory);
// Source, directory, type and options of what is mounted on the directory, as findmnt(8) shows
// them; empty when nothing is.
std::string MountLine(const Path& directory);

bool ProcessExists(pid_t pid);

// Brings down whatever cowfs is on the directory, in order if it can be done, by force if not.
Undo UnmountCowfsAtEnd(const Path& directory);

// A cowfs mount.
class Mount {
 public:
  // Runs `cowfs mount BASE DIRECTORY ARGUMENTS`; makes the directory. Throws when it fails.
  Mount(Path base, Path directory, Arguments arguments = {});
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;
  // It is a failure of the test when the mount cannot be taken down in order.
  ~Mount();

  const Path& directory() const { return directory_; }
  Path operator/(const std::string& image) const { return directory_ / image; }
  pid_t server() const { return server_; }
  pid_t keeper() const { return keeper_; }

  void Unmount();
  // With the same arguments; returns what was said on standard error.
  std::string MountAgain();
  void Remount() {
    Unmount();
    MountAgain();
  }
  // SIGKILL to keeper and server, as a crash of the host ends them; returns when they are gone. The
  // mount point stays, dead.
  void Kill() const;

 private:
  Path base_;
  Path directory_;
  Arguments arguments_;
  pid_t server_ = -1;
  pid_t keeper_ = -1;
  Undo undo_;
};

// A loop device over a file.
class LoopDevice {
 public:
  // Arguments are losetup's, "--direct-io=on" say.
  explicit LoopDevice(const Path& file, const Arguments& arguments = {});
  // The device's path, /dev/loop3 say.
  const std::string& device() const { return device_; }
  void Detach() { undo_.Run(); }

 private:
  std::string device_;
  Undo undo_;
};

// Something mounted by mount(8).
class OtherMount {
 public:
  OtherMount(const std::string& device, Path directory, const Arguments& arguments = {});
  const Path& path() const { return directory_; }
  Path operator/(const std::string& name) const { return directory_ / name; }
  void Unmount();

 private:
  Path directory_;
  Undo undo_;
};

// A host file system for bases and stores: "ext4", "xfs", "btrfs" in a loop device over a sparse
// file in the scratch directory, or "tmpfs".
class HostFileSystem {
 public:
  HostFileSystem(const Path& scratch, const std::string& type, uint64_t size = 400 * kMiB);
  const Path& path() const { return mount_->path(); }

 private:
  std::unique_ptr<LoopDevice> device_;
  std::unique_ptr<OtherMount> mount_;
};

// A test with a scratch directory of its own; skipped where one cannot mount.
class MountTest : public testing::Test {
 protected:
  void SetUp() override;

  const Path& Scratch() const { return scratch_.path(); }
  Path Base() const { return Scratch() / "base.img"; }
  Path Store() const { return Scratch() / "base.img.cowfs"; }
  Path MountPoint() const { return Scratch() / "vms"; }
  // Makes Base() of random bytes and returns them.
  Bytes MakeBase(uint64_t size = 8 * kMiB, uint32_t seed = 1000) const;
  // Mounts Base() on MountPoint().
  std::unique_ptr<Mount> MountBase(const Arguments& arguments = {}) const;

 private:
  ScratchDirectory scratch_;
};

// Makes an image of the base, as touch(1) does.
void Touch(const Path& path);

}  // namespace cowfs::e2e
