// The keeper of a mount is killed, or becomes another program, while machines run.

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "tests/e2e/machine.h"
#include "tests/e2e/mounts.h"
#include "tests/e2e/users_home.h"

namespace cowfs::e2e {
namespace {

class KeeperTest : public MountTest {
 protected:
  Json Info() const { return CowfsJson({"info", MountPoint()}); }
  pid_t Server() const { return Info().at("server_pid").get<pid_t>(); }
  pid_t Keeper() const { return Info().at("keeper_pid").get<pid_t>(); }

  void KillKeeper() const {
    kill(Keeper(), SIGKILL);
    EXPECT_TRUE(Eventually([&] { return Info()["keeper_pid"].is_null(); }));
  }
  // Returns when another server answers, of the keeper that there is.
  void KillServer() const {
    const pid_t old = Server();
    kill(old, SIGKILL);
    EXPECT_TRUE(Eventually([&] { return Server() != old; }));
  }
  // The uid that a process runs as.
  static uid_t UserOf(pid_t pid) {
    struct stat status {};
    EXPECT_EQ(stat(("/proc/" + std::to_string(pid)).c_str(), &status), 0);
    return status.st_uid;
  }
};

// With both ways in which requests come again.
class BothWays : public KeeperTest, public testing::WithParamInterface<const char*> {
 protected:
  static Arguments Resend() { return {"-o", std::string("resend=") + GetParam()}; }
  std::unique_ptr<Mount> MountBase(Arguments arguments = {}) const {
    const Arguments more = Resend();
    arguments.insert(arguments.end(), more.begin(), more.end());
    return KeeperTest::MountBase(arguments);
  }
};

class KilledKeeper : public BothWays {};

TEST_P(KilledKeeper, IsFollowedByAnotherWhileMachinesWork) {
  MakeBase(32 * kMiB);
  auto mount = MountBase();
  for (const char* name : {"dom1", "dom2", "dom3"}) {
    Touch(*mount / name);
  }
  const LoopDevice buffered(*mount / "dom1");
  const LoopDevice direct(*mount / "dom2", {"--direct-io=on"});
  Machine one(buffered.device(), 128, 0);
  Machine two(direct.device(), 128, O_DIRECT);
  Machine three(*mount / "dom3", 128, O_DIRECT);
  for (int i = 0; i < 5; ++i) {
    SleepMilliseconds(200);
    const Json before = Info();
    KillKeeper();
    SleepMilliseconds(100);
    Must(Cowfs({"restart", MountPoint()}));
    const Json after = Info();
    EXPECT_TRUE(ProcessExists(after["keeper_pid"].get<pid_t>()));
    EXPECT_NE(after["keeper_pid"], before["keeper_pid"]);
    EXPECT_NE(after["server_pid"], before["server_pid"]);
    EXPECT_FALSE(ProcessExists(before["server_pid"].get<pid_t>()));
    EXPECT_EQ(after["restarts"], before["restarts"].get<int>() + 1);
    KillServer();
    EXPECT_EQ(Info()["keeper_pid"], after["keeper_pid"]);
  }
  for (Machine* machine : {&one, &two, &three}) machine->ExpectGoodEnd(20);
  EXPECT_EQ(Info()["restarts"], 10);
}

TEST_P(KilledKeeper, IsFollowedAlsoIfItDiesWhileItIsAsked) {
  MakeBase();
  auto mount = MountBase();
  const pid_t keeper = mount->keeper();
  kill(keeper, SIGSTOP);
  Background restart({Program(), "restart", MountPoint()}, Scratch() / "out", Scratch() / "err");
  SleepMilliseconds(300);
  EXPECT_TRUE(ProcessExists(restart.pid()));
  kill(keeper, SIGKILL);
  EXPECT_EQ(restart.Wait(), 0) << ReadFile(Scratch() / "err");
  EXPECT_TRUE(ProcessExists(Info()["keeper_pid"].get<pid_t>()));
}

// A server with a file of its own mount open could not end: it would have to flush it.
TEST_P(KilledKeeper, IsFollowedByOneThatHasNothingOfTheMountOpen) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  KillKeeper();
  Must(Shell("exec 7<" + Quoted(*mount / "dom1") + "; " + Quoted(Program()) + " restart " +
             Quoted(MountPoint())));
  Must(Cowfs({"restart", "--keeper", MountPoint()}));
  KillServer();
  mount->Unmount();
}

TEST_P(KilledKeeper, IsFollowedByOneOnlyWhenManyAreStarted) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  Machine machine(*mount / "dom1", 64, O_DIRECT);
  KillKeeper();
  const Result result = Shell("all=; for i in 1 2 3 4 5 6; do " + Quoted(Program()) + " restart " +
                              Quoted(MountPoint()) +
                              " & all=\"$all $!\"; done; for each in $all; do wait $each; done");
  EXPECT_EQ(result.status, 0) << result.err;
  SleepMilliseconds(300);
  const std::string serving =
      Must(Execute({"pgrep", "-fc", "^cowfs serve " + MountPoint().string() + "$"}));
  EXPECT_EQ(serving, "1\n");
  KillServer();
  machine.ExpectGoodEnd();
}

TEST_P(KilledKeeper, IsMissedByNobodyAtAnUnmount) {
  MakeBase();
  const Path log = Scratch() / "cowfs.log";
  auto mount = MountBase({"--log-file", log});
  Touch(*mount / "dom1");
  const Bytes bytes = RandomBytes(3 * kMiB, 7);
  KillKeeper();
  const pid_t server = Server();
  File(*mount / "dom1").Write(0, bytes);
  const Result result = Cowfs({"umount", MountPoint()});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_FALSE(ProcessExists(server));
  EXPECT_TRUE(Mentions(ReadFile(log), "everything is durable"));
  EXPECT_TRUE(Mentions(Must(Cowfs({"check", Store()})), "clean"));
  mount->MountAgain();
  EXPECT_EQ(File(*mount / "dom1").Read(0, bytes.size()), bytes);
}

TEST_P(KilledKeeper, IsReplacedByNoStranger) {
  MakeBase();
  auto mount = MountBase();
  std::filesystem::copy_file(Program(), Scratch() / "cowfs");
  const auto restart = [&] {
    const Result result =
        Execute({Scratch() / "cowfs", "restart", MountPoint()}, {.as_nobody = true});
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(result.err, "cowfs restart: " + MountPoint().string() +
                              ": only root and the user that mounted it may restart it\n");
  };
  const pid_t server = Server();
  restart();
  KillKeeper();
  restart();
  EXPECT_EQ(Server(), server);
}

TEST_P(KilledKeeper, OfAUserIsFollowedByHisAlsoIfRootAsksForIt) {
  if (!UsersHome::MayMount()) GTEST_SKIP() << "needs fusermount3";
  const Result result = UsersHome(Scratch()).Run(R"sh(
    pid() { user ./cowfs info --json home/vms | sed -n "s/.*\"$1_pid\": *\([0-9a-z]*\).*/\1/p"; }
    lose() {
      kill -9 $(pid keeper)
      until [ "$(pid keeper)" = null ]; do sleep 0.05; done
    }
    user ./cowfs mount -o allow_root home/base.img home/vms
    user sh -c 'echo own > home/vms/dom1'
    lose
    user ./cowfs restart home/vms
    echo user: $(stat -c %u /proc/$(pid keeper) /proc/$(pid server)) $(cat home/vms/dom1)
    lose
    ./cowfs restart home/vms
    echo root: $(stat -c %u /proc/$(pid keeper) /proc/$(pid server)) $(cat home/vms/dom1)
    user ./cowfs restart home/vms
    user ./cowfs umount home/vms
  )sh");
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_EQ(result.out, "user: 65534 65534 own\nroot: 65534 65534 own\n");
}

TEST_P(KilledKeeper, OfAUserWhoKeepsRootOutIsFollowedByHis) {
  if (!UsersHome::MayMount()) GTEST_SKIP() << "needs fusermount3";
  const Result result = UsersHome(Scratch()).Run(R"sh(
    pid() { ./cowfs info --json home/vms | sed -n "s/.*\"$1_pid\": *\([0-9a-z]*\).*/\1/p"; }
    user ./cowfs mount home/base.img home/vms
    user sh -c 'echo own > home/vms/dom1'
    if cat home/vms/dom1; then exit 3; fi
    kill -9 $(pid keeper)
    until [ "$(pid keeper)" = null ]; do sleep 0.05; done
    ./cowfs restart home/vms
    echo $(stat -c %u /proc/$(pid keeper) /proc/$(pid server)) $(user cat home/vms/dom1)
    ./cowfs restart home/vms
    user ./cowfs umount home/vms
  )sh");
  EXPECT_EQ(result.status, 0) << result.out << result.err;
  EXPECT_EQ(result.out, "65534 65534 own\n");
}

TEST_P(KilledKeeper, IsNotReplacedAndTheServerLeftAloneIfThatCannotBe) {
  MakeBase();
  std::filesystem::create_directories(Scratch() / "logs");
  auto mount = MountBase({"--log-file", Scratch() / "logs/cowfs.log"});
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  KillKeeper();
  const pid_t server = Server();
  std::filesystem::remove_all(Scratch() / "logs");
  const Result result = Cowfs({"restart", MountPoint()});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "log file"));
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_EQ(Server(), server);
  std::filesystem::create_directories(Scratch() / "logs");
  Must(Cowfs({"restart", MountPoint()}));
  image.Write(0, "written");
}

TEST_P(KilledKeeper, IsFollowedByAServerOfTheOldProgramIfTheNewOneIsNone) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  KillKeeper();
  const pid_t server = Server();
  // One that runs, with another one at its path.
  const Path program = Scratch() / "cowfs";
  std::filesystem::copy_file(Program(), program);
  const Undo uncover([program] { Execute({"umount", "-l", program.string()}); });
  const Result result = Shell(
      "exec 9<\"$p\"; mount --bind /bin/false \"$p\"; "
      "exec /proc/self/fd/9 restart " +
          Quoted(MountPoint()),
      {.environment = "p=" + program.string()});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "has a keeper again"));
  EXPECT_TRUE(Mentions(result.err, "the old one goes on"));
  EXPECT_NE(Server(), server);
  EXPECT_EQ(std::filesystem::read_symlink("/proc/" + std::to_string(Server()) + "/exe"), Program());
  KillServer();
  image.Write(0, "written");
}

class StoppedKeeper : public KeeperTest {};

TEST_F(StoppedKeeper, IsNamedAndNotAskedForWhatItWouldDoLater) {
  MakeBase();
  auto mount = MountBase();
  const Json before = Info();
  kill(mount->keeper(), SIGSTOP);
  const Result result = Cowfs({"restart", MountPoint()}, {.timeout = std::chrono::seconds(30)});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "is stopped: `kill -CONT " + std::to_string(mount->keeper())));
  kill(mount->keeper(), SIGCONT);
  SleepMilliseconds(200);
  EXPECT_EQ(Info()["server_pid"], before["server_pid"]);
  EXPECT_EQ(Info()["restarts"], 0);
}

class StaleMountPoint : public KeeperTest {};

TEST_F(StaleMountPoint, IsCleanedUpByANewMount) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    image.Write(0, "synced");
    image.Sync();
  }
  const LoopDevice loop(*mount / "dom1");
  // The keeper first, and a server that lives on for a while.
  KillKeeper();
  const pid_t server = Server();
  kill(server, SIGKILL);
  ASSERT_TRUE(Eventually([&] { return !ProcessExists(server); }));
  struct stat status {};
  ASSERT_TRUE(
      Eventually([&] { return stat(MountPoint().c_str(), &status) != 0 && errno == ENOTCONN; }));

  const Path link = Scratch() / "link";
  std::filesystem::create_symlink(MountPoint(), link);
  const Result result = Cowfs({"mount", Base(), link});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "cowfs mount: " + MountPoint().string() +
                            ": keeper and server of the mount there were gone; it is cleaned up\n");
  EXPECT_EQ(File(*mount / "dom1").Read(0, 6), "synced");
  // Not one upon the other.
  Must(Cowfs({"umount", MountPoint()}));
  EXPECT_FALSE(IsMountPoint(MountPoint()));
}

TEST_F(StaleMountPoint, OfAnotherFileSystemIsRefused) {
  MakeBase();
  std::filesystem::create_directories(MountPoint());
  const Background other({FAKE_NETWORK_FS, MountPoint()}, Scratch() / "out", Scratch() / "err");
  const Undo unmount([where = MountPoint()] { Execute({"umount", "-l", where.string()}); });
  ASSERT_TRUE(Eventually([&] { return IsMountPoint(MountPoint()); }));
  other.Signal(SIGKILL);
  struct stat status {};
  ASSERT_TRUE(
      Eventually([&] { return stat(MountPoint().c_str(), &status) != 0 && errno == ENOTCONN; }));
  const Result result = Cowfs({"mount", Base(), MountPoint()});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "another file system (fuse.sshfs of host:/share)"));
  EXPECT_TRUE(Mentions(result.err, "umount -l"));
  EXPECT_TRUE(IsMountPoint(MountPoint()));
}

TEST_F(StaleMountPoint, IsNoneWhereAServerLivesWithoutItsKeeper) {
  MakeBase();
  auto mount = MountBase();
  KillKeeper();
  const pid_t server = Server();
  const Result result = Cowfs({"mount", Base(), MountPoint()});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "cowfs restart " + MountPoint().string()));
  EXPECT_TRUE(Mentions(result.err, "cowfs umount " + MountPoint().string()));
  EXPECT_EQ(Server(), server);
  // And with both gone there is nothing to restart.
  kill(server, SIGKILL);
  ASSERT_TRUE(Eventually([&] { return !ProcessExists(server); }));
  const Result restart = Cowfs({"restart", MountPoint()});
  EXPECT_EQ(restart.status, 1);
  EXPECT_TRUE(Mentions(restart.err, "its server is dead"));
  Must(Cowfs({"mount", Base(), MountPoint()}));
}

class ReplacedKeeper : public BothWays {
 protected:
  Path OwnProgram() const { return Scratch() / "cowfs"; }

  // Of a program that can be replaced.
  Undo MountByOwnProgram(uint64_t base_size = 8 * kMiB) const {
    MakeBase(base_size);
    std::filesystem::copy_file(Program(), OwnProgram());
    std::filesystem::create_directories(MountPoint());
    Undo unmount = UnmountCowfsAtEnd(MountPoint());
    Must(Execute({OwnProgram(), "mount", "--log-file", Log(), Resend()[0], Resend()[1], Base(),
                  MountPoint()}));
    return unmount;
  }
  Path Log() const { return Scratch() / "cowfs.log"; }
  // As an upgrade does it: another file under the name.
  void Upgrade(const Path& to) const {
    std::filesystem::remove(OwnProgram());
    std::filesystem::copy_file(to, OwnProgram());
  }
  static std::string ProgramOf(pid_t pid) {
    return std::filesystem::read_symlink("/proc/" + std::to_string(pid) + "/exe");
  }
  // The signals that it has blocked, as the kernel shows them.
  static std::string Blocked(pid_t pid) {
    return Must(Execute({"grep", "SigBlk", "/proc/" + std::to_string(pid) + "/status"}));
  }
  static size_t Descriptors(pid_t pid) {
    const std::filesystem::directory_iterator all("/proc/" + std::to_string(pid) + "/fd");
    return static_cast<size_t>(std::distance(begin(all), end(all)));
  }
};

TEST_P(ReplacedKeeper, IsTheSameProcessAndItsServerIsUndisturbed) {
  const Undo unmount = MountByOwnProgram(32 * kMiB);
  Touch(MountPoint() / "dom1");
  Touch(MountPoint() / "dom2");
  const LoopDevice loop(MountPoint() / "dom1");
  Machine one(loop.device(), 128, 0);
  Machine two(MountPoint() / "dom2", 128, O_DIRECT);
  KillServer();
  const Json before = Info();
  const auto keeper = before["keeper_pid"].get<pid_t>();
  const std::string blocked = Blocked(Server());
  size_t descriptors = 0;
  for (int i = 0; i < 5; ++i) {
    Upgrade(Program());
    EXPECT_NE(ProgramOf(keeper), OwnProgram());
    Must(Cowfs({"restart", "--keeper", MountPoint()}));
    EXPECT_EQ(ProgramOf(keeper), OwnProgram());
    const Json after = Info();
    for (const char* fact : {"keeper_pid", "server_pid", "restarts", "last_restart"}) {
      EXPECT_EQ(after[fact], before[fact]) << fact;
    }
    if (i == 1) {
      descriptors = Descriptors(keeper);
    }
    SleepMilliseconds(100);
  }
  EXPECT_EQ(Descriptors(keeper), descriptors);
  KillServer();
  EXPECT_EQ(Blocked(Server()), blocked);
  EXPECT_EQ(Keeper(), keeper);
  EXPECT_EQ(Info()["restarts"], 2);
  Must(Cowfs({"restart", MountPoint()}));
  EXPECT_EQ(Info()["restarts"], 3);
  for (Machine* machine : {&one, &two}) machine->ExpectGoodEnd(20);
}

// Versions side by side, with a link to the one in use.
TEST_P(ReplacedKeeper, IsOfTheProgramThatTheLinkItWasStartedByLeadsTo) {
  MakeBase();
  const auto version = [&](const char* name) { return Scratch() / name / "cowfs"; };
  for (const char* name : {"v1", "v2"}) {
    std::filesystem::create_directories(version(name).parent_path());
    std::filesystem::copy_file(Program(), version(name));
  }
  const Path link = Scratch() / "cowfs";
  std::filesystem::create_symlink("v1/cowfs", link);
  std::filesystem::create_directories(MountPoint());
  const Undo unmount = UnmountCowfsAtEnd(MountPoint());
  Must(Execute({link, "mount", Resend()[0], Resend()[1], Base(), MountPoint()}));
  std::filesystem::remove(link);
  std::filesystem::create_symlink("v2/cowfs", link);
  KillServer();
  EXPECT_EQ(ProgramOf(Server()), version("v1"));
  Must(Cowfs({"restart", MountPoint()}));
  EXPECT_EQ(ProgramOf(Server()), version("v2"));
  EXPECT_EQ(ProgramOf(Keeper()), version("v1"));
  Must(Cowfs({"restart", "--keeper", MountPoint()}));
  EXPECT_EQ(ProgramOf(Keeper()), version("v2"));
  // What it became by a descriptor still knows the link.
  std::filesystem::remove(link);
  std::filesystem::create_symlink("v1/cowfs", link);
  Must(Cowfs({"restart", MountPoint()}));
  EXPECT_EQ(ProgramOf(Server()), version("v1"));
}

// A restart that is asked for while another server of the old program is on its way.
TEST_P(ReplacedKeeper, IsNotContentWithAServerThatWasChosenBefore) {
  const Undo unmount = MountByOwnProgram();
  const pid_t keeper = Keeper();
  const pid_t before = Server();
  const Path children =
      "/proc/" + std::to_string(keeper) + "/task/" + std::to_string(keeper) + "/children";
  kill(before, SIGKILL);
  pid_t next = 0;
  // Without a pause: it is to be caught before it is ready.
  for (int i = 0; (next == 0 || next == before) && i < 1'000'000; ++i) {
    std::ifstream(children) >> next;
  }
  kill(next, SIGSTOP);
  Upgrade(Program());
  Background restart({Program(), "restart", MountPoint()}, Scratch() / "out", Scratch() / "err");
  SleepMilliseconds(300);
  kill(next, SIGCONT);
  EXPECT_EQ(restart.Wait(), 0) << ReadFile(Scratch() / "err");
  EXPECT_EQ(ProgramOf(Server()), OwnProgram());  // else "(deleted)" is in it
  EXPECT_NE(Server(), next);
}

TEST_P(ReplacedKeeper, SaysWhyTheProgramOnDiskCannotBeRun) {
  const Undo unmount = MountByOwnProgram();
  const pid_t before = Server();
  std::filesystem::remove(OwnProgram());
  Result result = Cowfs({"restart", MountPoint()});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "restarted, but by the program that ran before: " +
                                       OwnProgram().string() + ": No such file or directory"));
  EXPECT_NE(Server(), before);
  WriteFile(OwnProgram(), "#!/bin/sh\nexec /usr/bin/cowfs \"$@\"\n");
  std::filesystem::permissions(OwnProgram(), std::filesystem::perms::owner_all);
  for (const Arguments& line :
       {Arguments{"restart", MountPoint()}, Arguments{"restart", "--keeper", MountPoint()}}) {
    result = Cowfs(line);
    EXPECT_EQ(result.status, 1);
    EXPECT_TRUE(Mentions(result.err, "run " + OwnProgram().string()));
    EXPECT_TRUE(Mentions(result.err, "a script cannot take the place of the program"));
  }
  std::filesystem::permissions(OwnProgram(), std::filesystem::perms::owner_read);
  result = Cowfs({"restart", MountPoint()});
  EXPECT_TRUE(Mentions(result.err, "run " + OwnProgram().string() + ": Permission denied"));
  Upgrade(Program());
  Must(Cowfs({"restart", MountPoint()}));
}

TEST_P(ReplacedKeeper, MissesNoDeathOfItsServer) {
  const Undo unmount = MountByOwnProgram();
  Touch(MountPoint() / "dom1");
  Machine machine(MountPoint() / "dom1", 64, O_DIRECT);
  const pid_t keeper = Keeper();
  for (int i = 0; i < 25; ++i) {
    const pid_t server = Server();
    Background restart({Program(), "restart", "--keeper", MountPoint()}, Scratch() / "out",
                       Scratch() / "err");
    SleepMilliseconds(i);
    kill(server, SIGKILL);
    ASSERT_TRUE(Eventually([&] { return Server() != server; })) << i;
    restart.Wait();
    EXPECT_EQ(ReadFile(Scratch() / "err"), "");
  }
  EXPECT_EQ(Keeper(), keeper);
  EXPECT_EQ(Info()["restarts"], 25);
  machine.ExpectGoodEnd();
}

TEST_P(ReplacedKeeper, StaysAsItIsIfTheProgramOnDiskIsBroken) {
  const Undo unmount = MountByOwnProgram();
  Touch(MountPoint() / "dom1");
  const File image(MountPoint() / "dom1");
  WriteFile(Scratch() / "text", "no program");
  std::filesystem::permissions(Scratch() / "text", std::filesystem::perms(0755));
  const Json before = Info();
  const auto keeper = before["keeper_pid"].get<pid_t>();
  const std::string program = ProgramOf(keeper);
  for (const Path& broken : {Path("/bin/false"), Path("/bin/true"), Path("/bin/echo"),
                             Scratch() / "text", Path(RETURNING_KEEPER), Path()}) {
    std::filesystem::remove(OwnProgram());
    if (!broken.empty()) {
      std::filesystem::copy_file(broken, OwnProgram());
    }
    const Result result = Cowfs({"restart", "--keeper", MountPoint()});
    EXPECT_EQ(result.status, 1) << broken;
    EXPECT_TRUE(Mentions(result.err, "the old keeper goes on")) << broken;
    EXPECT_TRUE(Mentions(ReadFile(Log()), "the old program goes on")) << broken;
    const Json after = Info();
    for (const char* fact : {"keeper_pid", "server_pid", "restarts"}) {
      EXPECT_EQ(after[fact], before[fact]) << broken << fact;
    }
    EXPECT_EQ(ProgramOf(keeper), program + (program.ends_with(" (deleted)") ? "" : " (deleted)"));
  }
  EXPECT_TRUE(Mentions(ReadFile(Log()), "it is a test; the old program goes on"));
  KillServer();
  image.Write(0, "written");
  EXPECT_EQ(Keeper(), keeper);
}

TEST_P(ReplacedKeeper, OfAnUnknownFormGivesTheOldProgramItsPlaceBack) {
  WriteFile(Scratch() / "memory", "cowfs keeper 99\nback 6\n(99)\n");
  const std::string why =
      "the keeper hands down 'cowfs keeper 99', this program knows 'cowfs keeper 1'";
  const RunOptions in_scratch{.directory = Scratch()};
  const Result probe = Shell(Quoted(Program()) + " keep --probe 5 5<memory", in_scratch);
  EXPECT_EQ(probe.status, 1);
  EXPECT_TRUE(Mentions(probe.err, why));
  const Result back = Shell(Quoted(Program()) + " keep 5 5<memory 6</bin/echo", in_scratch);
  EXPECT_EQ(back.status, 0) << back.err;
  EXPECT_EQ(back.out, "keep --back " + why + " 5\n");
}

TEST_P(ReplacedKeeper, KeepsAMountThatWasGivenUp) {
  const Undo unmount = MountByOwnProgram();
  Touch(MountPoint() / "dom1");
  const File image(MountPoint() / "dom1");
  for (int i = 0; i < 5; ++i) {
    const pid_t server = Server();
    kill(server, SIGSEGV);
    ASSERT_TRUE(Eventually([&] { return i == 4 || Server() != server; }));
  }
  ASSERT_TRUE(Eventually([&] { return Mentions(ReadFile(Log()), "is not started again"); }));
  Must(Cowfs({"restart", "--keeper", MountPoint()}));
  char byte = 0;
  EXPECT_EQ(pread(image.fd(), &byte, 1, 4 * kMiB), -1);
  EXPECT_EQ(errno, EIO);
  Must(Cowfs({"restart", MountPoint()}));
  EXPECT_EQ(pread(image.fd(), &byte, 1, 5 * kMiB), 1);
}

TEST_P(ReplacedKeeper, ThatWasKilledIsFollowedByAnother) {
  MakeBase();
  auto mount = MountBase();
  KillKeeper();
  Must(Cowfs({"restart", "--keeper", MountPoint()}));
  EXPECT_TRUE(ProcessExists(Keeper()));
}

INSTANTIATE_TEST_SUITE_P(Resend, KilledKeeper, testing::Values("kernel", "slots"),
                         [](const auto& way) { return std::string(way.param); });
INSTANTIATE_TEST_SUITE_P(Resend, ReplacedKeeper, testing::Values("kernel", "slots"),
                         [](const auto& way) { return std::string(way.param); });

}  // namespace
}  // namespace cowfs::e2e
