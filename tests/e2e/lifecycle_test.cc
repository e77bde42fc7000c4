// How a mount comes up, how it is told to end, and how it ends.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <thread>

#include "tests/e2e/mounts.h"
#include "tests/e2e/users_home.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

namespace cowfs::e2e {
namespace {

// /sys/class/bdi/<major:minor> of the mount.
Path BackingDevice(const Path& mount) {
  const dev_t device = StatOf(mount).st_dev;
  return Path("/sys/class/bdi") /
         (std::to_string(major(device)) + ":" + std::to_string(minor(device)));
}

uint64_t Number(const Path& file) {
  char text[64] = {};
  const File opened(file, O_RDONLY);
  if (read(opened.fd(), text, sizeof(text) - 1) < 0) {
    throw std::runtime_error("cannot read " + file.string());
  }
  return std::stoull(text);
}

class Options : public MountTest {};

TEST_F(Options, SourceAndTypeShowInTheMountTable) {
  MakeBase();
  auto mount = MountBase();
  const std::string line = MountLine(MountPoint());
  EXPECT_EQ(line.find(Base().string() + " " + MountPoint().string() + " fuse.cowfs rw"), 0U)
      << line;
  EXPECT_TRUE(Mentions(line, "default_permissions"));
  EXPECT_TRUE(Mentions(line, "allow_other"));
}

TEST_F(Options, AReadOnlyMountReadsAndRefusesToWrite) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  mount->Unmount();
  const Mount read_only(Base(), MountPoint(), {"-o", "ro"});
  EXPECT_TRUE(Mentions(MountLine(MountPoint()), " ro,"));
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["read_only"], true);
  EXPECT_TRUE(Holds(read_only / "dom1", base));
  EXPECT_EQ(open((read_only / "dom1").c_str(), O_RDWR), -1);
  EXPECT_EQ(errno, EROFS);
  EXPECT_EQ(open((read_only / "new").c_str(), O_RDWR | O_CREAT, 0644), -1);
  EXPECT_EQ(errno, EROFS);
  EXPECT_EQ(unlink((read_only / "dom1").c_str()), -1);
  EXPECT_EQ(errno, EROFS);
  for (const Arguments& line :
       {Arguments{"create", read_only / "new"}, Arguments{"rm", read_only / "dom1"},
        Arguments{"resize", read_only / "dom1", "1G"},
        Arguments{"mv", read_only / "dom1", read_only / "dom2"}}) {
    EXPECT_EQ(Cowfs(line).status, 1) << line[0];
  }
  const LoopDevice loop(read_only / "dom1", {"-r"});
  EXPECT_EQ(Sha256(loop.device()), Sha256(Base()));
}

TEST_F(Options, OthersMayUseAMountThatRootMade) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const Result read = Execute({"sha256sum", (*mount / "dom1").string()}, {.as_nobody = true});
  EXPECT_EQ(read.out.substr(0, 64), Sha256(Base())) << read.err;
}

TEST_F(Options, UidGidAndUmaskAreShown) {
  MakeBase();
  auto mount = MountBase({"-o", "uid=1234,gid=5678,umask=027"});
  Touch(*mount / "dom1");
  for (const Path& path : {MountPoint(), *mount / "dom1"}) {
    const struct stat status = StatOf(path);
    EXPECT_EQ(status.st_uid, 1234U) << path;
    EXPECT_EQ(status.st_gid, 5678U) << path;
    EXPECT_EQ(status.st_mode & 027U, 0U) << path;
    EXPECT_EQ(status.st_mode & 0600U, 0600U) << path;
  }
}

TEST_F(Options, ListsAreParsedAsMountGivesThem) {
  const Bytes base = MakeBase();
  auto mount = MountBase({"-o", "rw,nosuid,nodev,noexec,noatime,cache=none", "-o", "no_tune"});
  const std::string line = MountLine(MountPoint());
  for (const char* const option : {"rw", "nosuid", "nodev", "noexec", "noatime"}) {
    EXPECT_TRUE(Mentions(line, option));
  }
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["cache"], "none");
  Touch(*mount / "dom1");
  EXPECT_TRUE(Holds(*mount / "dom1", base));
}

TEST_F(Options, OptionsMeantForOthersArePassedOver) {
  MakeBase();
  auto mount = MountBase({"-o", "defaults,_netdev,noauto,nofail,user,x-systemd.after=network"});
  Touch(*mount / "dom1");
}

// Whether the kernel spares this process from the throttling of writers (Linux 5.6, and the right
// CAP_SYS_RESOURCE). Asked in a child, which is then thrown away.
bool MayBecomeIoFlusher() {
  const pid_t pid = fork();
  if (pid == 0) {
    _exit(prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0 ? 0 : 1);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return status == 0;
}

TEST_F(Options, RootTunesTheBackingDeviceWhereItMay) {
  MakeBase();
  const Path log = Scratch() / "log";
  auto mount = MountBase({"--log-file", log});
  const Path device = BackingDevice(MountPoint());
  if (!std::filesystem::exists(device)) {
    GTEST_SKIP() << "no " << device << ": sysfs is not there";
  }
  EXPECT_GE(Number(device / "read_ahead_kb"), 1024U);
  if (!MayBecomeIoFlusher()) {
    // The dirty limits are there because a throttled server can stall its own writeback.
    EXPECT_EQ(Number(device / "max_ratio"), 1U);
    const Bytes text = ReadFile(log);
    EXPECT_TRUE(Mentions(text, "tuning")) << "not said in the log";
    EXPECT_EQ(text.find("tuning"), text.rfind("tuning")) << "said more than once";
    return;
  }
  EXPECT_EQ(Number(device / "max_ratio"), 100U);
  if (std::filesystem::exists(device / "strict_limit")) {  // since Linux 6.2
    EXPECT_EQ(Number(device / "strict_limit"), 0U);
  }
}

TEST_F(Options, NoTuneLeavesTheBackingDeviceAlone) {
  MakeBase();
  auto mount = MountBase({"-o", "no_tune"});
  const Path device = BackingDevice(MountPoint());
  if (!std::filesystem::exists(device)) {
    GTEST_SKIP() << "no " << device << ": sysfs is not there";
  }
  EXPECT_EQ(Number(device / "max_ratio"), 1U);
  EXPECT_LE(Number(device / "read_ahead_kb"), 128U);
}

TEST_F(Options, TheCacheIsWritebackUnlessToldOtherwise) {
  MakeBase();
  auto mount = MountBase({"-o", "cache=writeback"});
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["cache"], "writeback");
  mount->Unmount();
  const Mount direct(Base(), MountPoint(), {"-o", "cache=none"});
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["cache"], "none");
}

TEST_F(Options, NothingOfTheCallersStaysOpen) {
  MakeBase();
  std::filesystem::create_directories(MountPoint());
  const Undo unmount = UnmountCowfsAtEnd(MountPoint());
  // A lock that is the script's, and a pipe that ends when all have closed it.
  const std::string script = "cd " + Quoted(Scratch()) + "; exec 9>lock; flock -n 9; text=$(" +
                             Quoted(Program()) +
                             " mount base.img vms 3>&1); exec 9>&-; flock -n lock true; echo free";
  EXPECT_EQ(Must(Shell(script)), "free\n");
}

TEST_F(Options, AUserMountsWithoutBeingRoot) {
  if (!UsersHome::MayMount()) GTEST_SKIP() << "needs fusermount3";
  const Result result = UsersHome(Scratch()).Run(R"sh(
    cd home
    user sh -euc '
      p=../cowfs; $p mount base.img vms; touch vms/dom1; cmp vms/dom1 base.img
      echo own | dd of=vms/dom1 conv=notrunc status=none; $p ls vms; $p umount vms
      $p mount base.img vms; head -c4 vms/dom1; $p umount vms'
  )sh");
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_TRUE(Mentions(result.out, "own\n"));
}

class Ending : public MountTest {
 protected:
  // A process that has the image open.
  std::unique_ptr<Background> Hold(const Path& image) const {
    std::filesystem::remove(Scratch() / "holder.out");
    auto holder = std::make_unique<Background>(
        Arguments{"sh", "-c", "exec 3<\"$0\"; echo ready; exec sleep 600", image},
        Scratch() / "holder.out", Scratch() / "holder.err");
    EXPECT_TRUE(Eventually([&] { return ReadFile(Scratch() / "holder.out") == "ready\n"; }));
    return holder;
  }
};

TEST_F(Ending, UmountReturnsWhenTheServerHasEnded) {
  MakeBase();
  auto mount = MountBase();
  WriteFile(*mount / "dom1", RandomBytes(4 * kMiB, 1));
  const std::string cow_file = CowfsJson({"info", *mount / "dom1"})["cow_file"];
  const pid_t server = mount->server();
  EXPECT_TRUE(ProcessExists(server));
  Must(Cowfs({"umount", MountPoint()}));
  EXPECT_FALSE(ProcessExists(server));
  EXPECT_FALSE(IsMountPoint(MountPoint()));
  EXPECT_TRUE(Holds(cow_file, RandomBytes(4 * kMiB, 1)));
}

TEST_F(Ending, AStoreThatWasDeletedBeneathItsMountIsTold) {
  MakeBase();
  const Path log = Scratch() / "log";
  auto mount = MountBase({"--log-file", log});
  const Bytes own = RandomBytes(kMiB, 1);
  WriteFile(*mount / "dom1", own);
  Must(Cowfs({"sync", MountPoint()}));
  std::filesystem::remove_all(Store());
  const Result refused = Cowfs({"umount", MountPoint()});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, Store().string() + ": it was deleted or moved away"));
  EXPECT_TRUE(IsMountPoint(MountPoint()));
  EXPECT_TRUE(Mentions(Must(Cowfs({"info", MountPoint()})), "unknown"));
  EXPECT_TRUE(Mentions(Must(Cowfs({"ls"})), MountPoint()));
  const Result forced = Cowfs({"umount", "--force", MountPoint()});
  EXPECT_EQ(forced.status, 1);
  EXPECT_TRUE(Mentions(forced.err, "unmounted, but not all is durable"));
  EXPECT_FALSE(IsMountPoint(MountPoint()));
  EXPECT_TRUE(Mentions(ReadFile(log), "catalog.db: is gone"));
  EXPECT_TRUE(Mentions(ReadFile(log), "not everything that was written is durable"));
}

TEST_F(Ending, ACowFileThatWasDeletedBeneathItsMountIsTold) {
  MakeBase();
  const Path log = Scratch() / "log";
  auto mount = MountBase({"--log-file", log});
  WriteFile(*mount / "dom1", RandomBytes(kMiB, 1));
  Must(Cowfs({"sync", MountPoint()}));
  const std::string cow_file = CowfsJson({"info", *mount / "dom1"})["cow_file"];
  std::filesystem::remove(cow_file);
  const Result refused = Cowfs({"umount", MountPoint()});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, cow_file + ": deleted or replaced beneath the mount"));
  EXPECT_TRUE(Mentions(refused.err, "copy the images out"));
  EXPECT_TRUE(IsMountPoint(MountPoint()));
  EXPECT_EQ(Cowfs({"umount", "--force", MountPoint()}).status, 1);
  EXPECT_TRUE(Mentions(ReadFile(log), cow_file + ": is gone"));
  EXPECT_EQ(ReadFile(log).find(": everything is durable"), Bytes::npos);
}

TEST_F(Ending, AReplacedCatalogIsToldAndGetsNothingOfTheLog) {
  MakeBase();
  const Path log = Scratch() / "log";
  auto mount = MountBase({"--log-file", log});
  WriteFile(*mount / "dom1", RandomBytes(kMiB, 1));
  Must(Cowfs({"sync", MountPoint()}));
  mount->Remount();
  const Path catalog = Store() / "catalog.db";
  const Path copy = Scratch() / "copy.db";
  std::filesystem::copy_file(catalog, copy);
  for (int i = 0; i < 50; ++i) Touch(*mount / ("new" + std::to_string(i)));
  std::filesystem::rename(copy, catalog);
  for (int i = 50; i < 60; ++i) Touch(*mount / ("new" + std::to_string(i)));
  const Result refused = Cowfs({"umount", MountPoint()});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, catalog.string() + ": deleted or replaced"));
  EXPECT_TRUE(Eventually([&] { return Mentions(ReadFile(log), "another file is in its place"); }));
  EXPECT_EQ(Cowfs({"umount", "--force", MountPoint()}).status, 1);
  EXPECT_EQ(Cowfs({"check", Store()}).out, "clean; 1 image\n");
  // Nothing is lost, for who puts the right one in its place.
  std::filesystem::rename(catalog.string() + ".rescued", catalog);
  EXPECT_EQ(Cowfs({"check", Store()}).out, "clean; 61 images\n");
  mount->MountAgain();
}

TEST_F(Ending, UmountOfABusyMountNamesProcessesAndLoopDevices) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  Touch(*mount / "dom2");
  const auto holder = Hold(*mount / "dom1");
  const LoopDevice loop(*mount / "dom2");
  const Background inside({"sh", "-c", "cd \"$0\"; echo ready; exec sleep 600", MountPoint()},
                          Scratch() / "in.out", Scratch() / "in.err");
  ASSERT_TRUE(Eventually([&] { return ReadFile(Scratch() / "in.out") == "ready\n"; }));
  const Result result = Cowfs({"umount", MountPoint()});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, std::to_string(holder->pid())));
  EXPECT_TRUE(Mentions(result.err, std::to_string(inside.pid())));
  EXPECT_TRUE(Mentions(result.err, loop.device()));
  EXPECT_TRUE(IsMountPoint(MountPoint()));
  EXPECT_TRUE(Holds(*mount / "dom1", base));  // serves on
}

TEST_F(Ending, SignalsToEndUnmountAMountThatNobodyUses) {
  const Bytes base = MakeBase();
  for (const int signal : {SIGTERM, SIGINT}) {
    auto mount = MountBase();
    Touch(*mount / "dom1");
    {
      const File image(*mount / "dom1");
      image.Write(100, "written");
    }
    const pid_t server = mount->server();
    kill(server, signal);
    EXPECT_TRUE(Eventually([&] { return !ProcessExists(server); })) << signal;
    EXPECT_FALSE(IsMountPoint(MountPoint()));
    mount->MountAgain();
    Bytes expected = base;
    expected.replace(100, 7, "written");
    EXPECT_TRUE(Holds(*mount / "dom1", expected));
    std::filesystem::remove(*mount / "dom1");
  }
}

TEST_F(Ending, SignalsToEndABusyMountAreLoggedWithItsUsersAndItStays) {
  const Bytes base = MakeBase();
  const Path log = Scratch() / "cowfs.log";
  auto mount = MountBase({"--log-file", log});
  Touch(*mount / "dom1");
  Touch(*mount / "dom2");
  const auto holder = Hold(*mount / "dom1");
  const LoopDevice loop(*mount / "dom2");
  for (const int signal : {SIGTERM, SIGINT}) {
    WriteFile(log, "");
    kill(mount->server(), signal);
    EXPECT_TRUE(Eventually([&] {
      const std::string text = ReadFile(log);
      return text.find(std::to_string(holder->pid())) != std::string::npos &&
             text.find(loop.device()) != std::string::npos;
    })) << ReadFile(log);
    EXPECT_TRUE(ProcessExists(mount->server()));
    EXPECT_TRUE(IsMountPoint(MountPoint()));
    EXPECT_TRUE(Holds(*mount / "dom1", base));
  }
}

TEST_F(Ending, HangupReopensTheLogFile) {
  MakeBase();
  const Path log = Scratch() / "cowfs.log";
  auto mount = MountBase({"--log-file", log, "--log-level", "debug"});
  Touch(*mount / "dom1");
  ASSERT_TRUE(std::filesystem::exists(log));
  std::filesystem::rename(log, Scratch() / "cowfs.log.1");
  kill(mount->server(), SIGHUP);
  EXPECT_TRUE(Eventually([&] { return std::filesystem::exists(log); }));
  // What is logged from now on is in the new file.
  const auto holder = Hold(*mount / "dom1");
  kill(mount->server(), SIGTERM);
  EXPECT_TRUE(Eventually(
      [&] { return ReadFile(log).find(std::to_string(holder->pid())) != std::string::npos; }));
  EXPECT_TRUE(ProcessExists(mount->server()));
}

TEST_F(Ending, InTheForegroundItLogsToStandardErrorAndEndsByASignal) {
  const Bytes base = MakeBase();
  std::filesystem::create_directory(MountPoint());
  for (const std::string flag : {"--foreground", "-f"}) {
    const Undo undo = UnmountCowfsAtEnd(MountPoint());
    WriteFile(Scratch() / "err", "");
    Background server({Program(), "mount", Base(), MountPoint(), flag, "--log-level", "debug"},
                      Scratch() / "out", Scratch() / "err");
    ASSERT_TRUE(Eventually([&] { return IsMountPoint(MountPoint()); }))
        << ReadFile(Scratch() / "err");
    Touch(MountPoint() / "dom1");
    EXPECT_TRUE(Holds(MountPoint() / "dom1", base));
    EXPECT_EQ(CowfsJson({"info", MountPoint()})["keeper_pid"], server.pid());
    {
      // Who holds it is told on standard error.
      const auto holder = Hold(MountPoint() / "dom1");
      server.Signal(SIGINT);
      EXPECT_TRUE(Eventually([&] {
        return ReadFile(Scratch() / "err").find(std::to_string(holder->pid())) != std::string::npos;
      }));
    }
    // The holder's close reaches the server a little later; it is told again until it ends.
    int status = -1;
    EXPECT_TRUE(Eventually([&] {
      server.Signal(SIGINT);
      try {
        status = server.Wait(std::chrono::seconds(1));
        return true;
      } catch (const std::runtime_error&) {
        return false;
      }
    }));
    EXPECT_EQ(status, 0) << ReadFile(Scratch() / "err");
    EXPECT_FALSE(IsMountPoint(MountPoint()));
  }
}

TEST_F(Ending, AfterAPlainUmountANewMountWaitsForTheHolderThatIsEnding) {
  MakeBase();
  auto mount = MountBase();
  WriteFile(*mount / "dom1", "");
  for (uint32_t round = 0; round < 5; ++round) {
    {
      const File image(*mount / "dom1");
      image.Write(0, RandomBytes(16 * kMiB, round));
    }
    Must(Execute({"umount", MountPoint().string()}));
    mount->MountAgain();
    EXPECT_TRUE(Holds(*mount / "dom1", RandomBytes(16 * kMiB, round)));
  }
}

TEST_F(Ending, ALazyUmountKeepsTheStoreLockedUntilTheLastUserGoes) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  File image(*mount / "dom1");
  const pid_t server = mount->server();
  Must(Execute({"umount", "-l", MountPoint().string()}));
  EXPECT_TRUE(ProcessExists(server));
  // While it waits for the one that is ending, the last user goes.
  std::thread last_user([&] {
    SleepMilliseconds(1500);
    image.Write(0, "last words");
    image.Close();
  });
  const Result result = Cowfs({"mount", Base(), MountPoint()});
  last_user.join();
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_FALSE(ProcessExists(server));
  EXPECT_EQ(File(*mount / "dom1").Read(0, 10), "last words");
}

TEST_F(Ending, AfterTheServersDeathTheStaleMountPointIsExplainedAndCleaned) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  mount->Kill();
  EXPECT_TRUE(IsMountPoint(MountPoint()));
  struct stat status {};
  EXPECT_EQ(stat(MountPoint().c_str(), &status), -1);
  EXPECT_EQ(errno, ENOTCONN);
  for (const Arguments& line : {Arguments{"ls", MountPoint()}, Arguments{"info", MountPoint()},
                                Arguments{"sync", MountPoint()}}) {
    const Result result = Cowfs(line);
    EXPECT_EQ(result.status, 1) << line[0];
    EXPECT_TRUE(Mentions(result.err, "cowfs umount")) << line[0];
    EXPECT_TRUE(Mentions(result.err, MountPoint().string())) << line[0];
  }
  Must(Cowfs({"umount", MountPoint()}));
  EXPECT_FALSE(IsMountPoint(MountPoint()));
  mount->MountAgain();
  EXPECT_TRUE(Holds(*mount / "dom1", base));
}

TEST_F(Ending, AStaleMountPointThatALoopDeviceHoldsIsExplainedOrCleaned) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  LoopDevice loop(*mount / "dom1");
  mount->Kill();
  const Result held = Cowfs({"umount", MountPoint()});
  if (held.status != 0) {
    EXPECT_EQ(held.status, 1);
    EXPECT_TRUE(Mentions(held.err, loop.device()));
  }
  loop.Detach();
  if (IsMountPoint(MountPoint())) {
    Must(Cowfs({"umount", MountPoint()}));
  }
  EXPECT_FALSE(IsMountPoint(MountPoint()));
  mount->MountAgain();
  EXPECT_TRUE(std::filesystem::exists(*mount / "dom1"));
}

TEST_F(Ending, OfTwoMountsOfOneStoreAtOnceOneWins) {
  MakeBase();
  const std::vector<Path> directories{Scratch() / "one", Scratch() / "two"};
  for (int round = 0; round < 3; ++round) {
    std::vector<Undo> undos;
    for (const Path& directory : directories) {
      std::filesystem::create_directories(directory);
      undos.push_back(UnmountCowfsAtEnd(directory));
    }
    std::vector<Result> results(2);
    std::thread other([&] { results[1] = Cowfs({"mount", Base(), directories[1]}); });
    results[0] = Cowfs({"mount", Base(), directories[0]});
    other.join();
    const size_t winner = results[0].status == 0 ? 0 : 1;
    EXPECT_EQ(results[winner].status, 0) << results[0].err << results[1].err;
    EXPECT_EQ(results[1 - winner].status, 1);
    EXPECT_TRUE(Mentions(results[1 - winner].err, Store()));
    EXPECT_FALSE(IsMountPoint(directories[1 - winner]));
    Touch(directories[winner] / ("dom" + std::to_string(round)));
    Must(Cowfs({"umount", directories[winner]}));
  }
}

TEST_F(Ending, AfterDeathInTheMiddleOfWritesNothingIsAnotherChunksData) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  // Each 4 KiB holds its own number and a round; whatever a chunk shows afterwards must be its own
  // base content or one of its own rounds, and not older than what was flushed (I4).
  const auto pattern = [](uint64_t chunk, char round) {
    Bytes bytes(4096, round);
    bytes.replace(
        0, 20,
        "chunk " + std::string(14 - std::to_string(chunk).size(), '0') + std::to_string(chunk));
    return bytes;
  };
  constexpr uint64_t kChunks = 8 * kMiB / 4096;
  {
    const File image(*mount / "dom1");
    for (uint64_t chunk = 0; chunk < kChunks; chunk += 2) {
      image.Write(chunk * 4096, pattern(chunk, 'a'));
    }
    image.Sync();
    for (uint64_t chunk = 0; chunk < kChunks; chunk += 3) {
      image.Write(chunk * 4096, pattern(chunk, 'b'));
    }
    syncfs(image.fd());
    mount->Kill();
  }
  Must(Cowfs({"umount", MountPoint()}));
  mount->MountAgain();
  const Bytes content = ReadFile(*mount / "dom1");
  ASSERT_EQ(content.size(), base.size());
  for (uint64_t chunk = 0; chunk < kChunks; ++chunk) {
    const Bytes now = content.substr(chunk * 4096, 4096);
    const bool flushed = chunk % 2 == 0;
    const bool written = chunk % 3 == 0;
    const bool fits = (flushed && now == pattern(chunk, 'a')) ||
                      (!flushed && now == base.substr(chunk * 4096, 4096)) ||
                      (written && now == pattern(chunk, 'b'));
    ASSERT_TRUE(fits) << "chunk " << chunk << " holds " << now.substr(0, 24);
  }
}

TEST_F(Ending, MountReturnsWhenTheFileSystemIsUsable) {
  const Bytes base = MakeBase(kMiB);
  std::filesystem::create_directory(MountPoint());
  for (int round = 0; round < 5; ++round) {
    const Undo undo = UnmountCowfsAtEnd(MountPoint());
    const Result result =
        Shell(Quoted(Program()) + " mount " + Quoted(Base()) + " " + Quoted(MountPoint()) +
              " && touch " + Quoted(MountPoint() / "dom1") + " && cmp " + Quoted(Base()) + " " +
              Quoted(MountPoint() / "dom1"));
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_TRUE(result.let_go) << "the server keeps the terminal's descriptors";
    EXPECT_EQ(result.out, "");
    Must(Cowfs({"umount", MountPoint()}));
  }
}

TEST_F(Ending, MountReturnsAlsoWithoutStandardStreams) {
  MakeBase(kMiB);
  std::filesystem::create_directory(MountPoint());
  const Undo undo = UnmountCowfsAtEnd(MountPoint());
  Must(Shell("exec timeout 20 " + Quoted(Program()) + " mount " + Quoted(Base()) + " " +
             Quoted(MountPoint()) + " <&- >&- 2>&-"));
  EXPECT_TRUE(IsMountPoint(MountPoint()));
  Touch(MountPoint() / "dom1");
  Must(Cowfs({"umount", MountPoint()}));
}

TEST_F(Ending, TheServerKeepsNoDirectoryBusy) {
  MakeBase();
  const HostFileSystem elsewhere(Scratch(), "tmpfs", 16 * kMiB);
  std::filesystem::create_directory(MountPoint());
  const Undo undo = UnmountCowfsAtEnd(MountPoint());
  Must(Cowfs({"mount", Base(), MountPoint()}, {.directory = elsewhere.path()}));
  EXPECT_EQ(Execute({"umount", elsewhere.path().string()}).status, 0);
  Must(Cowfs({"umount", MountPoint()}));
}

}  // namespace
}  // namespace cowfs::e2e
