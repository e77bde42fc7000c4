#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <ostream>
#include <thread>
#include <vector>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {

// A host file system that a test fills to the last block, with the store on it and mounts of it.
class FullDisk : public MountTest {
 protected:
  void SetUpHost(const std::string& type) {
    MountTest::SetUp();
    if (IsSkipped()) return;
    host_.emplace(Scratch(), type);
    base_ = MakeBase(64 * kMiB);
  }

  [[nodiscard]] std::unique_ptr<Mount> MountOnHost(const std::string& options) const {
    return std::make_unique<Mount>(
        Base(), MountPoint(),
        Arguments{"--store", host_->path() / "store", "-o", options, "--log-file", Log()});
  }
  [[nodiscard]] Path Log() const { return Scratch() / "log"; }
  [[nodiscard]] Path Filler() const { return host_->path() / "filler"; }

  // To the last block.
  void Fill() const {
    const File filler(Filler(), O_RDWR | O_CREAT);
    struct statvfs space {};
    ASSERT_EQ(::statvfs(host_->path().c_str(), &space), 0);
    // Root may use what is kept back for root.
    ::posix_fallocate(filler.fd(), 0, static_cast<off_t>(space.f_bfree * space.f_frsize));
    const Bytes block = Zeros(4 * kKiB);
    // btrfs finds more space once it has committed.
    for (off_t at = ::lseek(filler.fd(), 0, SEEK_END), before = -1; at != before;) {
      before = at;
      while (::pwrite(filler.fd(), block.data(), block.size(), at) > 0) at += 4096;
      ASSERT_EQ(errno, ENOSPC);
      ::syncfs(filler.fd());
    }
  }
  void MakeRoom() const {
    std::filesystem::remove(Filler());
    // btrfs gives the space back with its next commit.
    const File root(host_->path(), O_RDONLY | O_DIRECTORY);
    ::syncfs(root.fd());
  }

  static uint64_t Parked(const Path& path) { return CowfsJson({"info", path})["parked"]; }
  static bool Waits(const Path& path) {
    return Eventually([&] { return Parked(path) > 0; });
  }
  static bool WaitsNoMore(const Path& path) {
    return Eventually([&] { return Parked(path) == 0; });
  }

  // One write with O_DIRECT: 0 or its errno.
  static int WriteDirectly(const Path& image, uint64_t offset, const Bytes& bytes) {
    const File file(image, O_RDWR | O_DIRECT);
    const DirectBuffer buffer(bytes.size());
    std::copy(bytes.begin(), bytes.end(), buffer.data());
    const ssize_t written =
        ::pwrite(file.fd(), buffer.data(), bytes.size(), static_cast<off_t>(offset));
    return written == static_cast<ssize_t>(bytes.size()) ? 0 : errno;
  }

  // Writes in a thread. A test that fails leaves it behind: it may wait for ever.
  class Writer {
   public:
    Writer(const Path& image, uint64_t offset, const Bytes& bytes)
        : code_(Start(image, offset, bytes)) {}
    int Join() { return code_.get(); }
    bool Done() const {
      return code_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    }

   private:
    static std::future<int> Start(const Path& image, uint64_t offset, const Bytes& bytes) {
      std::packaged_task<int()> task([=] { return WriteDirectly(image, offset, bytes); });
      std::future<int> code = task.get_future();
      std::thread(std::move(task)).detach();
      return code;
    }
    std::future<int> code_;
  };

  std::optional<HostFileSystem> host_;
  Bytes base_;
};

// On each type of host.
class Full : public FullDisk, public testing::WithParamInterface<std::string> {
 protected:
  void SetUp() override { SetUpHost(GetParam()); }
};

}  // namespace cowfs::e2e
