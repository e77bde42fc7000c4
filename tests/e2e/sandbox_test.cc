// The server of a mount can do what it is meant to and no more, and nothing that people do with a
// mount needs more.

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "tests/e2e/mounts.h"
#include "tests/e2e/users_home.h"

namespace cowfs::e2e {
namespace {

constexpr uint64_t kDacOverride = 1U << 1U;
constexpr uint64_t kLease = 1U << 28U;

std::map<std::string, std::string> StatusOf(pid_t pid) {
  std::ifstream lines("/proc/" + std::to_string(pid) + "/status");
  std::map<std::string, std::string> status;
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(':');
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    if (value != std::string::npos) status[line.substr(0, colon)] = line.substr(value);
  }
  return status;
}

class Sandbox : public MountTest {
 protected:
  Path Log() const { return Scratch() / "cowfs.log"; }
  static Json Info(const Path& path) { return CowfsJson({"info", path}); }
  pid_t Server() const { return Info(MountPoint())["server_pid"].get<pid_t>(); }

  // Of every thread: capabilities are a thread's.
  static void ExpectConfined(pid_t server) {
    size_t threads = 0;
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/" + std::to_string(server) + "/task")) {
      std::map<std::string, std::string> status = StatusOf(std::stoi(task.path().filename()));
      for (const char* set : {"CapPrm", "CapEff", "CapBnd"}) {
        EXPECT_EQ(std::stoull(status[set], nullptr, 16), kDacOverride | kLease) << set;
      }
      for (const char* set : {"CapInh", "CapAmb"}) {
        EXPECT_EQ(std::stoull(status[set], nullptr, 16), 0U) << set;
      }
      EXPECT_EQ(status["NoNewPrivs"], "1");
      ++threads;
    }
    EXPECT_GT(threads, 4U);
  }

  void KillServer() const {
    const pid_t old = Server();
    ::kill(old, SIGKILL);
    ASSERT_TRUE(Eventually([&] { return Server() != old; }));
  }
};

TEST_F(Sandbox, KeepsFewCapabilitiesAlsoInTheServerAfterOneThatWasKilled) {
  MakeBase();
  auto mount = MountBase();
  ExpectConfined(Server());
  KillServer();
  ExpectConfined(Server());
  const Json shown = Info(MountPoint())["sandbox"];
  EXPECT_EQ(shown["capabilities"], Json({"CAP_DAC_OVERRIDE", "CAP_LEASE"}));
  EXPECT_EQ(shown["no_new_privs"], true);
  EXPECT_TRUE(Mentions(Must(Cowfs({"info", MountPoint()})),
                       "no new privileges; capabilities: CAP_DAC_OVERRIDE, CAP_LEASE"));
}

class Prying : public Sandbox {
 protected:
  void SetUp() override {
    Sandbox::SetUp();
    if (IsSkipped()) return;
    ::setenv("LD_PRELOAD", PRYING_LIBRARY, 1);
    ::setenv("PRYING", Orders().c_str(), 1);
    ::setenv("PRYING_BASE", Base().c_str(), 1);
    ::setenv("PRYING_STORE", Store().c_str(), 1);
  }
  void TearDown() override {
    for (const char* name : {"LD_PRELOAD", "PRYING", "PRYING_BASE", "PRYING_STORE"}) {
      ::unsetenv(name);
    }
    Sandbox::TearDown();
  }
  Path Orders() const { return Scratch() / "orders"; }

  // What became of each try: 0 or errno.
  std::map<std::string, int> Tries() const {
    WriteFile(Orders(), "");
    const Path answer = Orders().string() + ".answer";
    std::map<std::string, int> tries;
    EXPECT_TRUE(Eventually([&] {
      std::istringstream lines(ReadFile(answer));
      std::string name;
      for (int code = 0; lines >> name >> code;) tries[name] = code;
      return tries.contains("end");
    }));
    return tries;
  }
};

TEST_F(Prying, OpensNothingButItsOwn) {
  MakeBase();
  auto mount = MountBase();
  if (Info(MountPoint())["sandbox"]["landlock"].is_null()) GTEST_SKIP() << "no Landlock here";
  const std::map<std::string, int> tries = Tries();
  EXPECT_EQ(tries, (std::map<std::string, int>{{"read_other", EACCES},
                                               {"list_root", EACCES},
                                               {"create_other", EACCES},
                                               {"write_base", EACCES},
                                               {"read_base", 0},
                                               {"write_store", 0},
                                               {"device", EACCES},
                                               {"mount", EPERM},
                                               {"chown", EPERM},
                                               {"run", EACCES},
                                               {"end", 0}}));
  EXPECT_FALSE(std::filesystem::exists(Orders().string() + ".created"));
}

// As on a kernel that was built without it.
void HideLandlock() {
  std::array<sock_filter, 4> code{
      sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 444, 0, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{.len = code.size(), .filter = code.data()};
  ASSERT_EQ(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), 0);
}

TEST_F(Prying, WithoutLandlockTheRestIsKeptAndSaid) {
  MakeBase();
  std::unique_ptr<Mount> mount;
  // The filter is the thread's, and goes with what it starts.
  std::thread([&] {
    HideLandlock();
    mount = MountBase({"--log-file", Log()});
  }).join();
  EXPECT_TRUE(Info(MountPoint())["sandbox"]["landlock"].is_null());
  EXPECT_TRUE(Mentions(ReadFile(Log()), "info: sandbox: no Landlock"));
  ExpectConfined(Server());
  std::map<std::string, int> tries = Tries();
  EXPECT_EQ(tries["read_other"], 0);
  EXPECT_EQ(tries["mount"], EPERM);
  EXPECT_EQ(tries["chown"], EPERM);
}

TEST_F(Sandbox, EveryCommandWorks) {
  const Bytes base = MakeBase();
  auto mount = MountBase({"--log-file", Log()});
  const Path dom1 = *mount / "dom1";
  for (const bool killed : {false, true}) {
    if (killed) KillServer();
    Must(Cowfs({"create", dom1}));
    EXPECT_TRUE(Holds(dom1, base));
    const Bytes bytes = RandomBytes(kMiB, 5);
    {
      const File file(dom1);
      file.Write(kMiB, bytes);
      file.Sync();
    }
    Must(Cowfs({"limit", dom1, "64M"}));
    Must(Cowfs({"resize", dom1, "16M"}));
    Must(Cowfs({"resize", dom1, "4M"}));
    Must(Shell("fallocate -p -o 0 -l 1M " + Quoted(dom1)));
    Must(Cowfs({"mv", dom1, *mount / "dom2"}));
    Must(Shell("cp " + Quoted(*mount / "dom2") + " " + Quoted(*mount / "dom3")));
    Must(Cowfs({"sync", MountPoint()}));
    EXPECT_EQ(CowfsJson({"ls", MountPoint()}).size(), 2U);
    EXPECT_EQ(Info(*mount / "dom2")["size"], 4 * kMiB);
    Must(Cowfs({"check", MountPoint()}));
    Must(Cowfs({"check", "--record-base", MountPoint()}));
    Must(Cowfs({"check", "--base", MountPoint()}));
    Must(Cowfs({"rm", *mount / "dom2", *mount / "dom3"}));
    Must(Cowfs({"restart", MountPoint()}));
  }
  EXPECT_EQ(ReadFile(Log()).find("ermission denied"), Bytes::npos) << ReadFile(Log());
  mount->Remount();
}

TEST_F(Sandbox, TheLogIsOpenedAgainForTheServerBySignalsToEither) {
  MakeBase();
  auto mount = MountBase({"--log-file", Log()});
  for (const pid_t pid : {mount->keeper(), mount->server()}) {
    std::filesystem::rename(Log(), Log().string() + ".1");
    ::kill(pid, SIGHUP);
    EXPECT_TRUE(Eventually([&] {
      return std::filesystem::exists(Log()) &&
             ReadFile(Log()).find("log: reopened") != std::string::npos;
    }));
  }
}

// As a service manager may start it: in the foreground, without a terminal, with few capabilities
// and no way to more.
TEST_F(Sandbox, AServicesMountIsAsGood) {
  const Bytes base = MakeBase();
  std::filesystem::create_directory(MountPoint());
  const Undo unmount = UnmountCowfsAtEnd(MountPoint());
  Background keeper(
      {"setpriv", "--no-new-privs",
       "--bounding-set=-all,+sys_admin,+dac_override,+lease,+kill,+setpcap", "--inh-caps=-all",
       Program(), "mount", "-f", "-o", "on_watermark=true", Base(), MountPoint()},
      Scratch() / "out", Scratch() / "err");
  ASSERT_TRUE(Eventually([&] { return IsMountPoint(MountPoint()); }));
  Touch(MountPoint() / "dom1");
  ExpectConfined(Server());
  Must(Cowfs({"restart", MountPoint()}));
  KillServer();
  ExpectConfined(Server());
  Must(Cowfs({"restart", "--keeper", MountPoint()}));
  EXPECT_EQ(Info(MountPoint())["keeper_pid"], keeper.pid());
  EXPECT_TRUE(Holds(MountPoint() / "dom1", base));
  keeper.Signal(SIGTERM);
  EXPECT_EQ(keeper.Wait(), 0);
  EXPECT_FALSE(IsMountPoint(MountPoint()));
}

TEST_F(Sandbox, AMountThatFailsLeavesNoStore) {
  MakeBase();
  std::filesystem::create_directory(MountPoint());
  const Result result =
      Cowfs({"mount", Base(), MountPoint(), "-o", "context=nonsense_that_no_kernel_takes"});
  EXPECT_EQ(result.status, 1) << result.out;
  EXPECT_FALSE(std::filesystem::exists(Store()));
}

TEST_F(Sandbox, RootServesABaseAndAStoreOfAnotherUser) {
  const Bytes base = MakeBase();
  std::filesystem::create_directory(Store());
  Must(Shell("chown 65534:65534 " + Quoted(Base()) + " " + Quoted(Store()) + "; chmod 600 " +
             Quoted(Base()) + "; chmod 700 " + Quoted(Store())));
  auto mount = MountBase({"--log-file", Log()});
  Touch(*mount / "dom1");
  EXPECT_TRUE(Holds(*mount / "dom1", base));
  WriteFile(*mount / "dom1", "new");
  // By the lease: inotify would be told of in the log.
  EXPECT_EQ(ReadFile(Log()).find("inotify"), Bytes::npos) << ReadFile(Log());
  { const File writer(Base()); }
  EXPECT_TRUE(Eventually(
      [&] { return ReadFile(Log()).find("was opened for writing") != std::string::npos; }));
}

TEST_F(Sandbox, AnOrdinaryUsersServerIsConfinedToo) {
  if (!UsersHome::MayMount()) GTEST_SKIP() << "needs fusermount3";
  const Json info = Json::parse(Must(UsersHome(Scratch()).Run(R"sh(
    cd home
    user sh -euc '
      p=../cowfs; $p mount base.img vms; echo x >vms/dom1; $p restart vms
      $p info --json vms; $p umount vms'
  )sh")));
  EXPECT_EQ(info["sandbox"]["capabilities"], Json::array());
  EXPECT_EQ(info["sandbox"]["no_new_privs"], true);
  EXPECT_EQ(info["restarts"], 1);
}

}  // namespace
}  // namespace cowfs::e2e
