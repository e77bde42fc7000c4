#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <set>
#include <string>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {

// Where a command finds its images: in a mount, or in a store that is not mounted.
enum class Where { kMounted, kOffline };

inline std::string NameOf(Where where) { return where == Where::kMounted ? "Mounted" : "Offline"; }

// A test of commands that is to hold in both places, over a base of random bytes.
class PlaceTest : public MountTest, public testing::WithParamInterface<Where> {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    base_ = MakeBase();
    mount_ = MountBase();
    if (Offline()) {
      mount_->Unmount();
    }
  }

  static bool Offline() { return GetParam() == Where::kOffline; }

  // COMMAND IMAGE... REST, as it is said here.
  Arguments Line(const std::string& command, const Arguments& images,
                 const Arguments& rest = {}) const {
    Arguments line{command};
    for (const std::string& image : images) {
      line.push_back(Offline() ? image : (*mount_ / image).string());
    }
    line.insert(line.end(), rest.begin(), rest.end());
    if (Offline()) {
      line.insert(line.end(), {"--store", Store()});
    }
    return line;
  }
  Result Command(const std::string& command, const Arguments& images,
                 const Arguments& rest = {}) const {
    return Cowfs(Line(command, images, rest));
  }
  // The images, read in a mount.
  const Mount& Mounted() const {
    if (!IsMountPoint(MountPoint())) {
      mount_->MountAgain();
    }
    return *mount_;
  }
  std::set<std::string> Names() const {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(Mounted().directory())) {
      names.insert(entry.path().filename().string());
    }
    return names;
  }

  Bytes base_;
  std::unique_ptr<Mount> mount_;
};

}  // namespace cowfs::e2e
