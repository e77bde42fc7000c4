// A server that has too few descriptors, or too little memory, or is signalled while it works: what
// it cannot do fails with an error, and nothing is lost of what it said was done (I8).

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class Scarce : public MountTest {
 protected:
  // The soft limit of the server's, for the time of this object.
  class Limited {
   public:
    Limited(pid_t pid, __rlimit_resource resource, rlim_t most) : pid_(pid), resource_(resource) {
      EXPECT_EQ(::prlimit(pid_, resource_, nullptr, &old_), 0);
      const rlimit now{.rlim_cur = most, .rlim_max = old_.rlim_max};
      EXPECT_EQ(::prlimit(pid_, resource_, &now, nullptr), 0);
    }
    Limited(const Limited&) = delete;
    Limited& operator=(const Limited&) = delete;
    ~Limited() { ::prlimit(pid_, resource_, &old_, nullptr); }

   private:
    pid_t pid_;
    __rlimit_resource resource_;
    rlimit old_{};
  };

  // Its address space in bytes.
  static uint64_t AddressSpace(pid_t pid) {
    uint64_t pages = 0;
    std::ifstream("/proc/" + std::to_string(pid) + "/statm") >> pages;
    return pages * 4 * kKiB;
  }

  static Bytes Block(uint64_t seed) { return RandomBytes(4 * kKiB, static_cast<uint32_t>(seed)); }

  // Writes blocks far apart and syncs now and then, and knows what is durable.
  class Machine {
   public:
    Machine(Path image, uint32_t seed) : image_(std::move(image)), random_(seed) {}

    // So many blocks; ends with the first error.
    void Run(int count) {
      const int fd = ::open(image_.c_str(), O_RDWR | O_CLOEXEC);
      if (fd < 0) {
        ++errors_;
        return;
      }
      std::map<uint64_t, uint64_t> written;  // not synced yet
      for (int i = 0; i < count; ++i) {
        const uint64_t seed = random_();
        const uint64_t place = random_() % (kSize / (4 * kKiB)) * (4 * kKiB);
        const Bytes block = Block(seed);
        // What may be half done is known no more.
        durable_.erase(place);
        written[place] = seed;
        const bool sync = i % 16 == 15 || i == count - 1;
        if (::pwrite(fd, block.data(), block.size(), static_cast<off_t>(place)) !=
                static_cast<ssize_t>(block.size()) ||
            (sync && ::fsync(fd) != 0)) {
          ++errors_;
          break;
        }
        if (sync) {
          durable_.merge(written);
          written.clear();
        }
      }
      ::close(fd);
    }

    testing::AssertionResult ShowsWhatIsDurable() const {
      const File file(image_, O_RDONLY);
      for (const auto& [place, seed] : durable_) {
        if (auto same = Same(Block(seed), file.Read(place, 4 * kKiB)); !same) {
          return same << " in " << image_ << " at " << place;
        }
      }
      return testing::AssertionSuccess();
    }
    int errors() const { return errors_; }
    size_t durable() const { return durable_.size(); }

    static constexpr uint64_t kSize = 64 * kGiB;

   private:
    Path image_;
    std::mt19937_64 random_;
    std::map<uint64_t, uint64_t> durable_;
    int errors_ = 0;
  };

  static std::vector<Machine> MakeMachines(const Mount& mount, uint32_t count) {
    std::vector<Machine> machines;
    for (uint32_t i = 0; i < count; ++i) {
      const Path image = mount / ("dom" + std::to_string(i));
      Touch(image);
      File(image).Truncate(Machine::kSize);
      machines.emplace_back(image, i);
    }
    return machines;
  }
};

TEST_F(Scarce, TenThousandImagesInTurnWithFewDescriptors) {
  MakeBase(kMiB);
  auto mount = MountBase();
  constexpr int kImages = 10'000;
  const auto image = [&](int i) { return *mount / ("dom" + std::to_string(i)); };
  Arguments create{"create"};
  for (int i = 0; i < kImages; ++i) create.push_back(image(i));
  Must(Cowfs(create, {.timeout = std::chrono::seconds(120)}));
  {
    const Limited limited(mount->server(), RLIMIT_NOFILE, 256);
    for (int i = 0; i < kImages; ++i) {
      const File file(image(i));
      file.Write(8 * kKiB, std::to_string(i) + ".");
      if (i % 10 == 0) file.Sync();
    }
    // More at once than can be: those that there are descriptors for, and an error for the rest.
    std::vector<File> open;
    int refused = 0;
    for (int i = 0; i < 300; ++i) {
      const int fd = ::open(image(i).c_str(), O_RDONLY | O_CLOEXEC);
      if (fd >= 0) {
        ::close(fd);
        open.emplace_back(image(i), O_RDWR);
        open.back().Write(16 * kKiB, "more");
        open.back().Sync();
      } else {
        EXPECT_EQ(errno, EMFILE);
        ++refused;
      }
    }
    EXPECT_GT(refused, 0);
    EXPECT_GT(open.size(), 150U);
    // Commands and commits go on with what is kept back for them.
    EXPECT_EQ(CowfsJson({"info", MountPoint()})["images"], kImages);
    Must(Cowfs({"create", *mount / "another"}));
  }
  mount->Remount();
  for (int i = 0; i < kImages; i += 7) {
    const Bytes expected = std::to_string(i) + ".";
    ASSERT_EQ(File(image(i), O_RDONLY).Read(8 * kKiB, expected.size()), expected);
  }
}

TEST_F(Scarce, WithoutMemoryTheServerFailsWhatItCannotDoAndLives) {
  MakeBase(kMiB);
  auto mount = MountBase();
  std::vector<Machine> machines = MakeMachines(*mount, 12);
  int errors = 0;
  // Each block needs a page of the map of its own.
  for (const uint64_t more : {1, 2, 4, 8}) {
    const Limited limited(mount->server(), RLIMIT_AS, AddressSpace(mount->server()) + more * kMiB);
    std::vector<std::thread> threads;
    for (Machine& machine : machines) threads.emplace_back([&machine] { machine.Run(200); });
    for (std::thread& thread : threads) thread.join();
    ASSERT_TRUE(ProcessExists(mount->server())) << more;
  }
  size_t durable = 0;
  for (const Machine& machine : machines) {
    EXPECT_TRUE(machine.ShowsWhatIsDurable());
    errors += machine.errors();
    durable += machine.durable();
  }
  EXPECT_GT(errors, 0) << "there was memory enough";
  EXPECT_GT(durable, 0U);
  // An image whose commit failed for want of memory keeps failing until the next mount (I8).
  Cowfs({"umount", "--force", MountPoint()});
  ASSERT_FALSE(IsMountPoint(MountPoint()));
  mount->MountAgain();
  for (Machine& machine : machines) {
    EXPECT_TRUE(machine.ShowsWhatIsDurable());
    const int before = machine.errors();
    machine.Run(20);
    EXPECT_EQ(machine.errors(), before);
  }
}

TEST_F(Scarce, SignalsUnderLoadLoseNothing) {
  MakeBase(kMiB);
  const Path log = Scratch() / "cowfs.log";
  auto mount = MountBase({"--log-file", log});
  std::vector<Machine> machines = MakeMachines(*mount, 4);
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (Machine& machine : machines) {
    threads.emplace_back([&] {
      while (!stop) machine.Run(64);
    });
  }
  // Held all the time: so it is not unmounted between two runs of a machine.
  const auto held = std::make_unique<File>(*mount / "dom0", O_RDONLY);
  for (int i = 0; i < 10; ++i) {
    for (const int signal : {SIGHUP, SIGTERM, SIGINT}) {
      std::filesystem::rename(log, Scratch() / "cowfs.log.1");
      ::kill(mount->server(), SIGHUP);
      EXPECT_TRUE(Eventually([&] { return std::filesystem::exists(log); }));
      ::kill(mount->server(), signal);
      SleepMilliseconds(10);
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(ProcessExists(mount->server()));
  for (const Machine& machine : machines) {
    EXPECT_EQ(machine.errors(), 0);
    EXPECT_GT(machine.durable(), 0U);
    EXPECT_TRUE(machine.ShowsWhatIsDurable());
  }
  File(*mount / "dom1").Write(0, Block(1));  // not synced
  held->Close();
  const pid_t server = mount->server();
  ::kill(server, SIGTERM);
  EXPECT_TRUE(Eventually([&] { return !ProcessExists(server); }));
  mount->MountAgain();
  EXPECT_TRUE(Same(Block(1), File(*mount / "dom1", O_RDONLY).Read(0, 4 * kKiB)));
  for (size_t i = 2; i < machines.size(); ++i) EXPECT_TRUE(machines[i].ShowsWhatIsDurable());
}

}  // namespace
}  // namespace cowfs::e2e
