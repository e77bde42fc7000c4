// dm-cow's promise on a real mount: requests that meet a chunk in copy-up wait for that chunk only.
// The server runs in a child process, with reads of one chunk of the base delayed below it.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/null_sink.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>
#include <vector>

#include "fs/keeper.h"
#include "fs/keeper_link.h"
#include "fs/server.h"
#include "store/error.h"

namespace cowfs {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr size_t kChunk = 64 << 10;
constexpr size_t kChunks = 64;
constexpr milliseconds kDelay{2000};

std::byte base_byte(size_t offset) { return static_cast<std::byte>(offset / 512 % 251); }

/// A store with 64 KiB chunks on a mount, whose base is slow at chunk 1.
class SlowBase : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0 || ::access("/dev/fuse", R_OK | W_OK) != 0) {
      GTEST_SKIP() << "needs root and /dev/fuse";
    }
    std::string name = "/var/tmp/cowfs-copy-up-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    std::filesystem::create_directory(directory_ + "/mnt");
    std::ofstream base(directory_ + "/base.img");
    for (size_t i = 0; i < kChunk * kChunks; ++i) base.put(static_cast<char>(base_byte(i)));
    base.close();

    std::array<int, 2> ready{};
    ASSERT_EQ(::pipe(ready.data()), 0);
    server_ = ::fork();
    ASSERT_GE(server_, 0);
    if (server_ == 0) run_server(ready[1]);
    ::close(ready[1]);
    char answer = 0;
    const ssize_t got = ::read(ready[0], &answer, 1);
    ::close(ready[0]);
    ASSERT_EQ(got, 1) << "the server did not start";
  }

  void TearDown() override {
    if (server_ > 0) {
      ::umount2((directory_ + "/mnt").c_str(), MNT_DETACH);
      if (::waitpid(server_, nullptr, 0) < 0) ::kill(server_, SIGKILL);
    }
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }

  [[nodiscard]] std::string path(const std::string& name) const {
    return directory_ + "/mnt/" + name;
  }

  /// Opened without the kernel's cache, so that each call comes to the server.
  int open_image(const std::string& name) {
    const int fd = ::open(path(name).c_str(), O_RDWR | O_CREAT | O_DIRECT, 0600);
    EXPECT_GE(fd, 0);
    return fd;
  }

 private:
  [[noreturn]] void run_server(int ready) {
    ServerConfig config;
    config.log = spdlog::null_logger_mt("server");
    config.mount_point = directory_ + "/mnt";
    config.store.directory = directory_ + "/store";
    config.store.base_path = directory_ + "/base.img";
    config.store.chunk_size = kChunk;
    config.store.create = true;
    config.store.fault_hook = [base = config.store.base_path](const std::string& path,
                                                              FileOperation operation,
                                                              uint64_t offset, uint64_t length) {
      const bool slow = path == base && operation == FileOperation::read && offset < 2 * kChunk &&
                        offset + length > kChunk;
      if (slow) std::this_thread::sleep_for(kDelay);
      return 0;
    };
    bool good = false;
    try {
      KeeperConfig keeper;
      keeper.mount_point = config.mount_point;
      keeper.log = config.log;
      keeper.instead_of_program = [&config](int socket) {
        KeeperLink link(socket);
        const int status = serve(config, link) ? 0 : 1;
        link.say(Say::ended, status);
        return status;
      };
      good = keep(keeper, [ready] { static_cast<void>(!::write(ready, "r", 1)); }) == 0;
    } catch (const Error&) {
      good = false;
    }
    ::_exit(good ? 0 : 1);
  }

  std::string directory_;
  pid_t server_ = -1;
};

/// 4 KiB that O_DIRECT takes.
struct alignas(4096) Page {
  std::array<std::byte, 4096> bytes;
};

std::unique_ptr<Page> page_of(int value) {
  auto page = std::make_unique<Page>();
  page->bytes.fill(static_cast<std::byte>(value));
  return page;
}

bool write_page(int fd, size_t offset, int value) {
  const auto page = page_of(value);
  return ::pwrite(fd, page->bytes.data(), sizeof(Page), static_cast<off_t>(offset)) == sizeof(Page);
}

std::byte read_byte(int fd, size_t offset) {
  const auto page = page_of(0);
  EXPECT_EQ(::pread(fd, page->bytes.data(), sizeof(Page), static_cast<off_t>(offset)),
            static_cast<ssize_t>(sizeof(Page)));
  return page->bytes[0];
}

/// A loop device over an image that hands each request on as it comes (direct I/O).
class DirectLoop {
 public:
  explicit DirectLoop(const std::string& image) {
    const std::string command = "losetup -f --show --direct-io=on '" + image + "'";
    FILE* pipe = ::popen(command.c_str(), "r");
    std::array<char, 64> line{};
    if (pipe != nullptr && std::fgets(line.data(), line.size(), pipe) != nullptr) {
      device_ = line.data();
      device_.pop_back();
    }
    if (pipe != nullptr) ::pclose(pipe);
  }
  DirectLoop(const DirectLoop&) = delete;
  DirectLoop& operator=(const DirectLoop&) = delete;
  ~DirectLoop() {
    if (device_.empty()) return;
    const int result = std::system(("losetup -d " + device_).c_str());
    EXPECT_EQ(result, 0);
  }
  [[nodiscard]] const std::string& device() const { return device_; }

 private:
  std::string device_;
};

TEST_F(SlowBase, OnlyRequestsForTheChunkInCopyUpWait) {
  const int first = open_image("one.img");
  const int second = open_image("two.img");
  {
    const DirectLoop loop(path("one.img"));
    if (loop.device().empty()) GTEST_SKIP() << "needs a loop device";
    const int device = ::open(loop.device().c_str(), O_RDWR | O_DIRECT);
    ASSERT_GE(device, 0);

    // More writers to the slow chunk than the server has threads: each covers a part of it.
    constexpr int kWriters = 48;
    std::vector<std::future<bool>> slow;
    for (int i = 0; i < kWriters; ++i) {
      slow.push_back(std::async(std::launch::async, [device, i] {
        return write_page(device, kChunk + 4096 * (static_cast<size_t>(i) % 12), 1 + i % 12);
      }));
    }
    std::this_thread::sleep_for(kDelay / 8);

    const auto start = Clock::now();
    EXPECT_EQ(read_byte(device, 5 * kChunk), base_byte(5 * kChunk));
    EXPECT_TRUE(write_page(device, 6 * kChunk, 77));
    EXPECT_EQ(read_byte(device, 6 * kChunk), std::byte{77});
    EXPECT_TRUE(write_page(second, 8 * kChunk, 99));
    EXPECT_EQ(read_byte(second, 8 * kChunk), std::byte{99});
    const auto other = Clock::now() - start;
    for (std::future<bool>& writer : slow) {
      EXPECT_EQ(writer.wait_for(milliseconds(0)), std::future_status::timeout)
          << "a write to the slow chunk did not wait";
    }
    EXPECT_LT(other, kDelay / 2);

    for (std::future<bool>& writer : slow) EXPECT_TRUE(writer.get());
    for (size_t i = 0; i < 12; ++i) {
      EXPECT_EQ(read_byte(device, kChunk + 4096 * i), static_cast<std::byte>(1 + i));
    }
    EXPECT_EQ(read_byte(device, kChunk + 4096 * 12), base_byte(kChunk + 4096 * 12));
    ::close(device);
  }
  ::close(first);
  ::close(second);
}

}  // namespace
}  // namespace cowfs
