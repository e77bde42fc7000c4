#pragma once

#include <string>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {

// What an ordinary user has who mounts without root: a directory with base.img and vms/, the
// program beside it, and fusermount3.
class UsersHome {
 public:
  // Below `scratch`.
  explicit UsersHome(const Path& scratch) : scratch_(scratch), home_(scratch / "home") {
    std::filesystem::copy_file(Program(), scratch_ / "cowfs");
    std::filesystem::create_directories(home_ / "vms");
    WriteFile(home_ / "base.img", RandomBytes(kMiB, 1));
    WriteFile(scratch_ / "fuse.conf", "user_allow_other\n");
    Must(Execute({"chown", "-R", "65534:65534", home_.string()}));
  }
  static bool MayMount() { return Execute({"sh", "-c", "command -v fusermount3"}).status == 0; }

  // Runs a shell script as root, with home/ and cowfs in the current directory, in a mount name
  // space of its own with a /dev/fuse that everybody may open, as most hosts have it, and mounts
  // that root may enter if the user wants that. `user COMMAND...` in it runs a command as the user,
  // who may not gain anything but through fusermount3.
  Result Run(const std::string& script) const {
    const std::string beginning = R"sh(
      cd "$0"
      mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse
      touch /etc/fuse.conf; mount --bind fuse.conf /etc/fuse.conf
      user() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
    )sh";
    return Execute({"unshare", "-m", "sh", "-euc", beginning + script, scratch_});
  }

 private:
  const Path scratch_;
  const Path home_;
};

}  // namespace cowfs::e2e
