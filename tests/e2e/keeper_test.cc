// The server of a mount dies, or is replaced, while machines run: they must not notice.

#include <linux/fuse.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <thread>

#include "fs/saved_init.h"
#include "tests/e2e/machine.h"
#include "tests/e2e/mounts.h"
#include "tests/e2e/name_changer.h"

namespace cowfs::e2e {
namespace {

// Each with both ways in which requests come again.
class Keeper : public MountTest, public testing::WithParamInterface<const char*> {
 protected:
  std::unique_ptr<Mount> MountBase(Arguments arguments = {}) const {
    arguments.insert(arguments.end(), {"-o", std::string("resend=") + GetParam()});
    return MountTest::MountBase(arguments);
  }
  Json Info() const { return CowfsJson({"info", MountPoint()}); }
  pid_t Server() const { return Info().at("server_pid").get<pid_t>(); }

  // Kills the server that there is now; returns when another one answers.
  void KillServer(int signal = SIGKILL) const {
    const pid_t old = Server();
    kill(old, signal);
    EXPECT_TRUE(Eventually([&] { return Server() != old; }));
  }
};

// Dead, with all its threads, and its parent was not told.
bool IsZombie(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/status");
  const std::string status{std::istreambuf_iterator<char>(file), {}};
  return Mentions(status, "State:\tZ") && Mentions(status, "Threads:\t1\n");
}

TEST_P(Keeper, IsShownWithItsServerAndRestarts) {
  MakeBase();
  auto mount = MountBase();
  const Json before = Info();
  EXPECT_TRUE(ProcessExists(before["keeper_pid"].get<pid_t>()));
  EXPECT_NE(before["keeper_pid"], before["server_pid"]);
  EXPECT_EQ(before["restarts"], 0);
  EXPECT_TRUE(before["last_restart"].is_null());
  EXPECT_EQ(before["resend"], GetParam());
  KillServer();
  const Json after = Info();
  EXPECT_EQ(after["keeper_pid"], before["keeper_pid"]);
  EXPECT_NE(after["server_pid"], before["server_pid"]);
  EXPECT_EQ(after["restarts"], 1);
  EXPECT_FALSE(after["last_restart"].is_null());
}

TEST_P(Keeper, MachinesGoOnWhileServersAreKilled) {
  MakeBase(32 * kMiB);
  auto mount = MountBase();
  for (const char* name : {"dom1", "dom2", "dom3"}) {
    Touch(*mount / name);
  }
  const LoopDevice buffered(*mount / "dom1");
  const LoopDevice direct(*mount / "dom2", {"--direct-io=on"});
  {
    Machine one(buffered.device(), 128, 0);
    Machine two(direct.device(), 128, O_DIRECT);
    Machine three(*mount / "dom3", 128, O_DIRECT);
    for (int i = 0; i < 15; ++i) {
      SleepMilliseconds(300);
      KillServer();
    }
    for (Machine* machine : {&one, &two, &three}) machine->ExpectGoodEnd(20);
  }
  EXPECT_EQ(Info()["restarts"], 15);
}

// What it is told while it does not know yet that the server is dead.
TEST_P(Keeper, GoesOnWhenItIsAskedForSomethingByTheDead) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  for (const int signal : {SIGUSR1, SIGHUP, SIGUSR2}) {
    const Json before = Info();
    const auto keeper = before["keeper_pid"].get<pid_t>();
    const auto server = before["server_pid"].get<pid_t>();
    kill(keeper, SIGSTOP);
    kill(server, SIGKILL);
    EXPECT_TRUE(Eventually([&] { return IsZombie(server); }));
    kill(keeper, signal);
    kill(keeper, SIGCONT);
    image.Write(0, "written");
    const Json after = Info();
    EXPECT_EQ(after["keeper_pid"], keeper);
    EXPECT_EQ(after["restarts"], before["restarts"].get<int>() + 1);
  }
}

TEST_P(Keeper, NamesAreChangedOnceThoughServersAreKilled) {
  MakeBase();
  auto mount = MountBase();
  NameChanger names(MountPoint());
  for (int i = 0; i < 15; ++i) {
    SleepMilliseconds(200);
    try {
      KillServer();
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
      break;
    }
  }
  ExpectGoodEnd(names.load(), 20);
  EXPECT_TRUE(std::filesystem::is_empty(MountPoint()));
  mount->Unmount();
  EXPECT_TRUE(std::filesystem::is_empty(Store() / "layers"));
  EXPECT_TRUE(Mentions(Must(Cowfs({"check", Store()})), "clean"));
}

TEST_P(Keeper, AFileSystemInALoopDeviceStaysWritableAndClean) {
  MakeTree(Scratch() / "tree");
  MakeExt4Image(Base(), 64 * kMiB, Scratch() / "tree");
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const LoopDevice loop(*mount / "dom1");
  {
    OtherMount guest(loop.device(), Scratch() / "guest");
    for (int i = 0; i < 10; ++i) {
      WriteFile(guest / ("file" + std::to_string(i)), RandomBytes(kMiB + 1, i));
      KillServer();
    }
    Must(Execute({"sync", "-f", guest.path().string()}));
    for (int i = 0; i < 10; ++i) {
      EXPECT_TRUE(Holds(guest / ("file" + std::to_string(i)), RandomBytes(kMiB + 1, i)));
    }
    guest.Unmount();
  }
  Must(Execute({"e2fsck", "-fn", loop.device()}));
}

TEST_P(Keeper, AServerThatDiesAgainAndAgainIsNotStartedForEver) {
  MakeBase();
  const Path log = Scratch() / "cowfs.log";
  auto mount = MountBase({"--log-file", log});
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  for (int i = 0; i < 4; ++i) {
    KillServer(SIGSEGV);
  }
  kill(Server(), SIGSEGV);
  ASSERT_TRUE(
      Eventually([&] { return ReadFile(log).find("is not started again") != std::string::npos; }));
  char byte = 0;
  EXPECT_EQ(pread(image.fd(), &byte, 1, 4 * kMiB), -1);
  EXPECT_EQ(errno, EIO);
  EXPECT_TRUE(IsMountPoint(MountPoint()));

  Must(Cowfs({"restart", MountPoint()}));
  EXPECT_EQ(pread(image.fd(), &byte, 1, 5 * kMiB), 1);
  EXPECT_EQ(pwrite(image.fd(), &byte, 1, 5 * kMiB), 1);
}

TEST_P(Keeper, AMountThatWasGivenUpIsUnmounted) {
  MakeBase();
  const Path log = Scratch() / "cowfs.log";
  auto mount = MountBase({"--log-file", log});
  OtherMount elsewhere(MountPoint(), Scratch() / "elsewhere", {"--bind"});
  for (int i = 0; i < 4; ++i) {
    KillServer(SIGSEGV);
  }
  kill(Server(), SIGSEGV);
  ASSERT_TRUE(
      Eventually([&] { return ReadFile(log).find("is not started again") != std::string::npos; }));
  const Result result = Cowfs({"umount", MountPoint()});
  EXPECT_EQ(result.status, 0) << result.err;
  // It does not wait for a keeper that has to stay.
  EXPECT_TRUE(Mentions(result.err, "is mounted in another place too"));
  EXPECT_FALSE(IsMountPoint(MountPoint()));
  EXPECT_TRUE(ProcessExists(mount->keeper()));
  elsewhere.Unmount();
  EXPECT_TRUE(Eventually([&] { return !ProcessExists(mount->keeper()); }));
  mount->MountAgain();
}

TEST_P(Keeper, AMountThatWasGivenUpIsNotTakenFromItsUsers) {
  MakeBase();
  const Path log = Scratch() / "cowfs.log";
  auto mount = MountBase({"--log-file", log});
  Touch(*mount / "dom1");
  Touch(*mount / "dom2");
  File image(*mount / "dom1");
  image.Write(0, "written");
  const pid_t keeper = mount->keeper();
  {
    const LoopDevice loop(*mount / "dom2");
    for (int i = 0; i < 4; ++i) {
      KillServer(SIGSEGV);
    }
    kill(Server(), SIGSEGV);
    const auto ls = [] { return CowfsJson({"ls"}).dump(); };
    ASSERT_TRUE(Eventually([&] { return ls().find("given up") != std::string::npos; }));
    const std::string restart = "`cowfs restart " + MountPoint().string() + "` tries a";
    for (const Arguments& arguments : std::vector<Arguments>{{"info", MountPoint()},
                                                             {"ls", MountPoint()},
                                                             {"create", MountPoint() / "new"},
                                                             {"rm", MountPoint() / "dom1"},
                                                             {"sync", MountPoint()},
                                                             {"check", MountPoint()},
                                                             {"mount", Base(), MountPoint()}}) {
      const Result result = Cowfs(arguments);
      EXPECT_EQ(result.status, 1);
      EXPECT_TRUE(Mentions(result.err, "its server crashed again and again")) << result.command;
      EXPECT_TRUE(Mentions(result.err, restart)) << result.command;
    }
    const Result refused = Cowfs({"umount", MountPoint()});
    EXPECT_EQ(refused.status, 1);
    EXPECT_TRUE(Mentions(refused.err, "is in use by "));
    EXPECT_TRUE(Mentions(refused.err, loop.device()));
    EXPECT_TRUE(Mentions(refused.err, "process " + std::to_string(getpid())));
    EXPECT_TRUE(Mentions(refused.err, restart));
    kill(keeper, SIGTERM);
    EXPECT_TRUE(
        Eventually([&] { return ReadFile(log).find("is in use by ") != std::string::npos; }));
    EXPECT_TRUE(IsMountPoint(MountPoint()));
    Must(Cowfs({"restart", MountPoint()}));
    EXPECT_EQ(image.Read(0, 7), "written");
    for (int i = 0; i < 4; ++i) {
      KillServer(SIGSEGV);
    }
    kill(Server(), SIGSEGV);
    ASSERT_TRUE(Eventually([&] { return ls().find("given up") != std::string::npos; }));
  }
  EXPECT_THROW(image.Close(), std::exception);  // nobody can flush it
  const Result ended = Cowfs({"umount", MountPoint()});
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_TRUE(Mentions(ended.err, "what was not durable by then is lost"));
  EXPECT_FALSE(ProcessExists(keeper));
  mount->MountAgain();
}

TEST_P(Keeper, RestartReplacesTheServerAndKeepsWhatIsOpen) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  image.Write(5000, "written before");
  std::filesystem::remove(*mount / "dom1");
  const pid_t before = Server();
  Must(Cowfs({"restart", MountPoint()}));
  EXPECT_NE(Server(), before);
  EXPECT_FALSE(ProcessExists(before));
  EXPECT_EQ(image.Read(5000, 14), "written before");
  image.Write(6000, "and after");
  image.Sync();
  EXPECT_EQ(image.Read(6000, 9), "and after");
}

TEST_P(Keeper, ANewProgramThatDoesNotStartIsGivenUpForTheOldOne) {
  MakeBase();
  const Path program = Scratch() / "cowfs";
  std::filesystem::copy_file(Program(), program);
  std::filesystem::create_directories(MountPoint());
  const Undo unmount = UnmountCowfsAtEnd(MountPoint());
  Must(Execute({program.string(), "mount", "-o", std::string("resend=") + GetParam(),
                Base().string(), MountPoint().string()}));
  const pid_t before = Server();
  // As an upgrade does it: another file under the name.
  std::filesystem::remove(program);
  std::filesystem::copy_file("/bin/false", program);
  const Result result = Cowfs({"restart", MountPoint()});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "the old one goes on"));
  EXPECT_NE(Server(), before);
  // And again, now that it works.
  std::filesystem::remove(program);
  std::filesystem::copy_file(Program(), program);
  Must(Cowfs({"restart", MountPoint()}));
  const Path running = std::filesystem::read_symlink("/proc/" + std::to_string(Server()) + "/exe");
  EXPECT_EQ(running, program);
}

TEST_P(Keeper, TriesAgainWhereItLacksWhatAServerTakes) {
  MakeBase();
  const Path log = Scratch() / "cowfs.log";
  auto mount = MountBase({"--log-file", log});
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  const pid_t keeper = mount->keeper();
  const auto limit_descriptors = [&](rlim_t most) {
    rlimit limit{};
    ASSERT_EQ(prlimit(keeper, RLIMIT_NOFILE, nullptr, &limit), 0);
    limit.rlim_cur = most;
    ASSERT_EQ(prlimit(keeper, RLIMIT_NOFILE, &limit, nullptr), 0);
  };
  const auto logged = [&](const char* what) {
    return Eventually([&] { return ReadFile(log).find(what) != std::string::npos; });
  };
  const pid_t before = Server();
  limit_descriptors(4);
  kill(before, SIGKILL);
  ASSERT_TRUE(logged("start the server: Too many open files"));
  limit_descriptors(1024);
  image.Write(0, "written");
  EXPECT_NE(Server(), before);
  // Not for ever.
  limit_descriptors(4);
  kill(Server(), SIGKILL);
  ASSERT_TRUE(logged("is not started again"));
  limit_descriptors(1024);
  Must(Cowfs({"restart", MountPoint()}));
  EXPECT_EQ(image.Read(0, 7), "written");
}

// No program of today would: what the one that mounted has agreed upon is made to look otherwise.
TEST_P(Keeper, AServerThatWouldAgreeUponOtherThingsWithTheKernelDoesNotServe) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  image.Write(0, "written");
  const Path descriptors = "/proc/" + std::to_string(mount->keeper()) + "/fd";
  Path live;
  for (const auto& entry : std::filesystem::directory_iterator(descriptors)) {
    const Path target = std::filesystem::read_symlink(entry.path());
    if (target.string().starts_with("/memfd:cowfs-live")) live = entry.path();
  }
  // fuse_init_out.max_readahead, in the reply, in the notes (store/live_memory.cc).
  constexpr uint64_t kAt = 2048 + offsetof(SavedInit, reply) + sizeof(fuse_out_header) + 8;
  const File memory(live);
  const Bytes right = memory.Read(kAt, 1);
  memory.Write(kAt, Bytes(1, static_cast<char>(right[0] ^ 1)));
  const Result refused = Cowfs({"restart", MountPoint()});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, "would agree upon other things with the kernel"));
  // The old program is the same one here, and refuses as well.
  EXPECT_TRUE(
      Eventually([] { return CowfsJson({"ls"}).dump().find("given up") != std::string::npos; }));
  memory.Write(kAt, right);
  Must(Cowfs({"restart", MountPoint()}));
  EXPECT_EQ(image.Read(0, 7), "written");
}

TEST_P(Keeper, SignalsToItUnmountOrNameWhoUsesTheMount) {
  MakeBase();
  const Path log = Scratch() / "cowfs.log";
  auto mount = MountBase({"--log-file", log});
  Touch(*mount / "dom1");
  const pid_t keeper = mount->keeper();
  {
    const LoopDevice loop(*mount / "dom1");
    kill(keeper, SIGTERM);
    EXPECT_TRUE(Eventually([&] {
      return ReadFile(log).find("in use by " + loop.device()) != std::string::npos;
    })) << ReadFile(log);
    EXPECT_TRUE(IsMountPoint(MountPoint()));
  }
  kill(keeper, SIGTERM);
  EXPECT_TRUE(Eventually([&] { return !ProcessExists(keeper); }));
  EXPECT_FALSE(IsMountPoint(MountPoint()));
}

TEST_P(Keeper, WithoutItTheServerGoesOnAndSaysSo) {
  const Bytes base = MakeBase();
  const Path log = Scratch() / "cowfs.log";
  auto mount = MountBase({"--log-file", log});
  Touch(*mount / "dom1");
  kill(mount->keeper(), SIGKILL);
  EXPECT_TRUE(Eventually([&] { return Info()["keeper_pid"].is_null(); }));
  EXPECT_TRUE(Mentions(ReadFile(log), "keeper"));
  EXPECT_TRUE(Holds(*mount / "dom1", base));
  WriteFile(*mount / "dom1", "new");
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom1", "new"));
}

TEST_P(Keeper, AnUnmountWhileTheServerIsDeadLosesNothing) {
  Bytes expected = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1", O_RDWR | O_DIRECT);
    const DirectBuffer buffer(4096);
    RandomBytes(4096, 1).copy(buffer.data(), 4096);
    ASSERT_EQ(pwrite(image.fd(), buffer.data(), 4096, 8192), 4096);
    expected.replace(8192, 4096, RandomBytes(4096, 1));
  }
  // It cannot be replaced while its keeper stands still.
  kill(mount->keeper(), SIGSTOP);
  kill(mount->server(), SIGKILL);
  EXPECT_TRUE(Eventually([&] { return !ProcessExists(mount->server()); }));
  // umount(8) would ask for attributes first, and wait.
  ASSERT_EQ(umount2(MountPoint().c_str(), 0), 0);
  kill(mount->keeper(), SIGCONT);
  EXPECT_TRUE(Eventually([&] { return !ProcessExists(mount->keeper()); }));
  mount->MountAgain();
  EXPECT_TRUE(Holds(*mount / "dom1", expected));
}

INSTANTIATE_TEST_SUITE_P(Resend, Keeper, testing::Values("kernel", "slots"),
                         [](const auto& way) { return std::string(way.param); });

}  // namespace
}  // namespace cowfs::e2e
