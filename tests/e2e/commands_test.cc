// create, rm, mv and resize: on images in a mount and, with --store, without one; what any command
// refuses, and the paths that it takes.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "tests/e2e/places.h"

namespace cowfs::e2e {
namespace {

class Commands : public PlaceTest {};

TEST_P(Commands, CreateMakesImagesOfTheBase) {
  const Result result = Command("create", {"dom1", "dom2", "dom3"});
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(Names(), (std::set<std::string>{"dom1", "dom2", "dom3"}));
  EXPECT_TRUE(Holds(Mounted() / "dom2", base_));
}

TEST_P(Commands, CreateTakesSizeOwnerAndMode) {
  Must(Command("create", {"big"}, {"--size", "1T", "--owner", "1234:5678", "--mode", "640"}));
  Must(Command("create", {"small"}, {"--size", "1000001", "--owner", "nobody"}));
  Must(Command("create", {"k"}, {"--size", "5K"}));
  Must(Command("create", {"m"}, {"--size", "3MiB", "--mode", "0600"}));
  Must(Command("create", {"g"}, {"--size", "2G", "--owner", "nobody:nogroup"}));
  const struct stat big = StatOf(Mounted() / "big");
  EXPECT_EQ(static_cast<uint64_t>(big.st_size), 1024 * kGiB);
  EXPECT_EQ(big.st_uid, 1234U);
  EXPECT_EQ(big.st_gid, 5678U);
  EXPECT_EQ(big.st_mode & 07777U, 0640U);
  EXPECT_EQ(StatOf(Mounted() / "small").st_uid, 65534U);
  EXPECT_TRUE(Holds(Mounted() / "small", base_.substr(0, 1'000'001)));
  EXPECT_TRUE(Holds(Mounted() / "k", base_.substr(0, 5 * kKiB)));
  EXPECT_TRUE(Holds(Mounted() / "m", base_.substr(0, 3 * kMiB)));
  EXPECT_EQ(StatOf(Mounted() / "m").st_mode & 07777U, 0600U);
  EXPECT_EQ(static_cast<uint64_t>(StatOf(Mounted() / "g").st_size), 2 * kGiB);
  EXPECT_EQ(StatOf(Mounted() / "g").st_gid, 65534U);
  EXPECT_TRUE(Same(base_ + Zeros(kMiB), File(Mounted() / "big").Read(0, base_.size() + kMiB)));
}

TEST_P(Commands, CreateRefusesWhatIsThereAndWhatIsUnfit) {
  Must(Command("create", {"dom1"}));
  const Result twice = Command("create", {"dom1"});
  EXPECT_EQ(twice.status, 1);
  EXPECT_TRUE(Mentions(twice.err, "dom1"));
  for (const std::string name : {"a@b", ".snapshots", ".cowfs"}) {
    const Result unfit = Command("create", {name});
    EXPECT_EQ(unfit.status, 1) << name;
    EXPECT_TRUE(Mentions(unfit.err, name));
  }
  const Result escape = Command("create", {"red\x1b[31m\nname"});
  EXPECT_EQ(escape.status, 1);
  EXPECT_EQ(escape.err.find('\x1b'), std::string::npos) << "an escape sequence on the terminal";
  EXPECT_EQ(std::count(escape.err.begin(), escape.err.end(), '\n'), 1) << escape.err;
  const Result nobody = Command("create", {"dom2"}, {"--owner", "no-such-user"});
  EXPECT_TRUE(nobody.status == 1 || nobody.status == 2) << nobody.status;
  EXPECT_TRUE(Mentions(nobody.err, "no-such-user"));
  const Result size = Command("create", {"dom2"}, {"--size", "many"});
  EXPECT_TRUE(size.status == 1 || size.status == 2) << size.status;
  EXPECT_TRUE(Mentions(size.err, "many"));
  EXPECT_EQ(Names(), std::set<std::string>{"dom1"});
}

TEST_P(Commands, RmRemovesImages) {
  Must(Command("create", {"dom1", "dom2", "dom3"}));
  Must(Command("rm", {"dom1", "dom3"}));
  EXPECT_EQ(Names(), std::set<std::string>{"dom2"});
}

TEST_P(Commands, RmOfWhatIsNamedTwiceRemovesItOnce) {
  Must(Command("create", {"dom1", "dom2", "dom3"}));
  Must(Command("rm", {"dom1", "dom2", "dom1"}));
  if (!Offline()) {
    Must(Cowfs({"rm", *mount_ / "dom3", MountPoint() / "." / "dom3"}));
    EXPECT_EQ(Names(), std::set<std::string>{});
  }
}

TEST_P(Commands, RmAndCreateChangeNothingIfOneOfThemCannotBe) {
  Must(Command("create", {"dom1", "dom2"}));
  for (const auto& [command, images] : std::vector<std::pair<std::string, Arguments>>{
           {"rm", {"dom1", "none"}}, {"create", {"dom3", "dom1"}}, {"create", {"dom3", "dom3"}}}) {
    const Result result = Command(command, images);
    EXPECT_EQ(result.status, 1) << command;
    EXPECT_TRUE(Mentions(result.err, images[1]));
  }
  if (!Offline()) {
    const Result twice = Cowfs({"create", *mount_ / "dom3", MountPoint() / "." / "dom3"});
    EXPECT_EQ(twice.status, 1);
    EXPECT_TRUE(Mentions(twice.err, "named twice"));
  }
  EXPECT_EQ(Names(), (std::set<std::string>{"dom1", "dom2"}));
}

TEST_P(Commands, RmOfWhatIsNotThereFailsAndNamesIt) {
  const Result result = Command("rm", {"none"});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "none"));
}

TEST_P(Commands, MvRenames) {
  Must(Command("create", {"dom1"}));
  Must(Command("mv", {"dom1", "dom2"}));
  EXPECT_EQ(Command("mv", {"dom1", "dom3"}).status, 1);
  EXPECT_EQ(Names(), std::set<std::string>{"dom2"});
  EXPECT_TRUE(Holds(Mounted() / "dom2", base_));
}

TEST_P(Commands, MvReplacesOnlyWithForce) {
  Must(Command("create", {"dom1"}, {"--size", "1M"}));
  Must(Command("create", {"dom2"}, {"--size", "2M"}));
  const Result refused = Command("mv", {"dom1", "dom2"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, "dom2"));
  Must(Command("mv", {"dom1", "dom2"}, {"--force"}));
  EXPECT_EQ(Names(), std::set<std::string>{"dom2"});
  EXPECT_EQ(static_cast<uint64_t>(StatOf(Mounted() / "dom2").st_size), kMiB);
}

TEST_P(Commands, MvRefusesAnUnfitName) {
  Must(Command("create", {"dom1"}));
  EXPECT_EQ(Command("mv", {"dom1", "dom1@clean"}).status, 1);
  EXPECT_EQ(Names(), std::set<std::string>{"dom1"});
}

TEST_P(Commands, ResizeGrowsAndShrinks) {
  Must(Command("create", {"dom1"}));
  const auto resize = [&](const std::string& size) {
    if (Offline()) {
      Must(Cowfs({"resize", "dom1", size, "--store", Store()}));
    } else {
      Must(Cowfs({"resize", *mount_ / "dom1", size}));
    }
  };
  resize("1000001");
  resize("16M");
  EXPECT_TRUE(Holds(Mounted() / "dom1", base_.substr(0, 1'000'001) + Zeros(16 * kMiB - 1'000'001)));
}

TEST_P(Commands, ResizeRefusesBadSizes) {
  Must(Command("create", {"dom1"}));
  for (const std::string size : {"", "x", "1.5.5G", "-1", "99999999999999999999", "9000000P"}) {
    const Result result = Offline() ? Cowfs({"resize", "--store", Store(), "--", "dom1", size})
                                    : Cowfs({"resize", "--", *mount_ / "dom1", size});
    EXPECT_TRUE(result.status == 1 || result.status == 2) << size;
    EXPECT_NE(result.err, "");
  }
  EXPECT_EQ(static_cast<uint64_t>(StatOf(Mounted() / "dom1").st_size), base_.size());
}

TEST_P(Commands, WhatIsNotThereIsNamed) {
  for (const std::string command : {"info", "ls", "rm"}) {
    const Result result = Command(command, {"none.img"});
    EXPECT_EQ(result.status, 1) << command;
    EXPECT_TRUE(Mentions(result.err, "none.img")) << command;
    EXPECT_EQ(result.out, "");
  }
}

INSTANTIATE_TEST_SUITE_P(Places, Commands, testing::Values(Where::kMounted, Where::kOffline),
                         [](const testing::TestParamInfo<Where>& where) {
                           return NameOf(where.param);
                         });

class CommandsInUse : public MountTest {};

TEST_F(CommandsInUse, RmAndShrinkRefuseAndNameTheProcess) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const Background holder(
      {"sh", "-c", "exec 3<\"$0\"; echo ready; exec sleep 600", *mount / "dom1"}, Scratch() / "out",
      Scratch() / "err");
  ASSERT_TRUE(Eventually([&] { return ReadFile(Scratch() / "out") == "ready\n"; }));
  const std::string pid = std::to_string(holder.pid());
  const auto refused = [&](const Arguments& line) {
    const Result result = Cowfs(line);
    EXPECT_EQ(result.status, 1) << line[0];
    EXPECT_TRUE(Mentions(result.err, pid)) << line[0];
    EXPECT_TRUE(Mentions(result.err, "dom1"));
    EXPECT_TRUE(Mentions(result.err, "--force"));
  };
  refused({"rm", *mount / "dom1"});
  refused({"resize", *mount / "dom1", "1M"});
  EXPECT_TRUE(Holds(*mount / "dom1", base));
  Must(Cowfs({"resize", *mount / "dom1", "16M"}));  // growing takes nothing away
  EXPECT_EQ(static_cast<uint64_t>(StatOf(*mount / "dom1").st_size), 16 * kMiB);

  const Json users = CowfsJson({"ls", MountPoint()})[0]["users"];
  ASSERT_EQ(users.size(), 1U) << users;
  EXPECT_EQ(users[0]["kind"], "process");
  EXPECT_EQ(users[0]["pid"], holder.pid());
  EXPECT_TRUE(users[0]["command"].is_string());
  EXPECT_TRUE(Mentions(Must(Cowfs({"ls", MountPoint()})), pid));

  Must(Cowfs({"resize", *mount / "dom1", "1M", "--force"}));
  EXPECT_EQ(static_cast<uint64_t>(StatOf(*mount / "dom1").st_size), kMiB);
  Must(Cowfs({"rm", *mount / "dom1", "--force"}));
  EXPECT_FALSE(std::filesystem::exists(*mount / "dom1"));
}

TEST_F(CommandsInUse, RmAndShrinkRefuseAndNameTheLoopDevice) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  LoopDevice loop(*mount / "dom1");
  for (const Arguments& line :
       {Arguments{"rm", *mount / "dom1"}, Arguments{"resize", *mount / "dom1", "1M"}}) {
    const Result result = Cowfs(line);
    EXPECT_EQ(result.status, 1) << line[0];
    EXPECT_TRUE(Mentions(result.err, loop.device())) << line[0];
  }
  EXPECT_EQ(static_cast<uint64_t>(StatOf(*mount / "dom1").st_size), base.size());
  EXPECT_EQ(CowfsJson({"info", *mount / "dom1"})["users"],
            Json::array({{{"kind", "loop"}, {"device", loop.device()}}}));
  loop.Detach();
  Must(Cowfs({"rm", *mount / "dom1"}));
}

TEST_F(CommandsInUse, MvOverAnImageInUseIsRefusedAndNamesTheUser) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  Touch(*mount / "dom2");
  const LoopDevice loop(*mount / "dom2");
  const Result result = Cowfs({"mv", *mount / "dom1", *mount / "dom2"});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "dom2"));
  EXPECT_TRUE(std::filesystem::exists(*mount / "dom1"));
}

TEST_F(CommandsInUse, PlainRmDoesAsPosixSays) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const File image(*mount / "dom1");
  Must(Execute({"rm", (*mount / "dom1").string()}));
  EXPECT_TRUE(Same(base, image.ReadAll()));
}

class CommandsOffline : public MountTest {};

TEST_F(CommandsOffline, AMountedStoreIsRefusedAndTheMountNamed) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  for (const Arguments& line :
       {Arguments{"create", "dom2"}, Arguments{"rm", "dom1"}, Arguments{"mv", "dom1", "dom2"},
        Arguments{"resize", "dom1", "1M"}, Arguments{"ls"}, Arguments{"info", "dom1"}}) {
    Arguments whole = line;
    whole.insert(whole.end(), {"--store", Store()});
    const Result result = Cowfs(whole);
    EXPECT_EQ(result.status, 1) << line[0];
    EXPECT_TRUE(Mentions(result.err, MountPoint().string())) << line[0];
  }
  EXPECT_EQ(CowfsJson({"ls", MountPoint()}).size(), 1U);
  EXPECT_EQ(StatOf(*mount / "dom1").st_size, StatOf(Base()).st_size);
}

TEST_F(CommandsOffline, AStoreWhoseBaseIsGoneCanBeListedAndTidiedUp) {
  MakeBase();
  MountBase()->Unmount();
  Must(Cowfs({"create", "dom1", "dom2", "--store", Store()}));
  std::filesystem::remove(Base());
  Must(Cowfs({"mv", "dom1", "dom3", "--store", Store()}));
  Must(Cowfs({"rm", "dom2", "--store", Store()}));
  EXPECT_EQ(CowfsJson({"ls", "--store", Store()}).at(0).at("name"), "dom3");
  EXPECT_EQ(CowfsJson({"info", Store()})["images"], 1);
  for (const Arguments& line : {Arguments{"create", "dom4", "--store", Store()},
                                Arguments{"resize", "dom3", "1M", "--store", Store()}}) {
    const Result result = Cowfs(line);
    EXPECT_EQ(result.status, 1) << line[0];
    EXPECT_TRUE(Mentions(result.err, Base())) << line[0];
  }
}

TEST_F(CommandsOffline, NamesWithASlashAreNoNamesInAStore) {
  MakeBase();
  MountBase()->Unmount();
  const Result result = Cowfs({"create", "../dom1", "--store", Store()});
  EXPECT_NE(result.status, 0);
  EXPECT_TRUE(Mentions(result.err, "../dom1"));
  EXPECT_EQ(CowfsJson({"ls", "--store", Store()}).size(), 0U);
}

class CommandsOnMounts : public MountTest {};

TEST_F(CommandsOnMounts, CommandsOnWhatIsNoCowfsMountSaySo) {
  MakeBase();
  WriteFile(Scratch() / "plain", "x");
  for (const Arguments& line :
       {Arguments{"sync", Scratch()}, Arguments{"umount", Scratch()},
        Arguments{"ls", Scratch() / "none"}, Arguments{"info", Scratch() / "plain"},
        Arguments{"create", Scratch() / "dom1"}, Arguments{"rm", Scratch() / "plain"},
        Arguments{"resize", Scratch() / "plain", "1M"},
        Arguments{"mv", Scratch() / "plain", Scratch() / "moved"}}) {
    const Result result = Cowfs(line);
    EXPECT_EQ(result.status, 1) << line[0];
    EXPECT_TRUE(Mentions(result.err, "cowfs " + line[0] + ":"));
    EXPECT_TRUE(Mentions(result.err, line[1])) << line[0];
  }
  EXPECT_EQ(ReadFile(Scratch() / "plain"), "x");
  EXPECT_FALSE(std::filesystem::exists(Scratch() / "dom1"));
}

TEST_F(CommandsOnMounts, CommandsTakeRelativePaths) {
  const Bytes base = MakeBase();
  std::filesystem::create_directory(MountPoint());
  const RunOptions here{.directory = Scratch()};
  const Undo undo = UnmountCowfsAtEnd(MountPoint());
  Must(Cowfs({"mount", "base.img", "vms"}, here));
  Must(Cowfs({"create", "vms/dom1"}, here));
  Must(Cowfs({"create", "dom2"}, {.directory = MountPoint()}));
  EXPECT_TRUE(Holds(MountPoint() / "dom1", base));
  EXPECT_TRUE(std::filesystem::exists(MountPoint() / "dom2"));
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["store"], Store().string());
  Must(Cowfs({"sync", "vms/"}, here));
  Must(Cowfs({"umount", "vms/"}, here));
  EXPECT_FALSE(IsMountPoint(MountPoint()));
  Must(Cowfs({"create", "dom3", "--store", "base.img.cowfs"}, here));
}

TEST_F(CommandsOnMounts, PathsWithUnusualCharactersWork) {
  const Path base = Scratch() / "a base\twith\nodd \x1b[31m,name\\.img";
  const Path directory = Scratch() / "vms, with\n\"odd\" \\ name";
  const Bytes bytes = RandomBytes(kMiB, 1);
  WriteFile(base, bytes);
  Mount mount(base, directory);
  Touch(mount / "dom1");
  EXPECT_TRUE(Holds(mount / "dom1", bytes));
  EXPECT_EQ(CowfsJson({"info", directory})["base"], base.string());
  for (const Arguments& line : {Arguments{"ls"}, Arguments{"info", directory}}) {
    const std::string text = Must(Cowfs(line));
    EXPECT_EQ(text.find('\x1b'), std::string::npos) << "an escape sequence out of a name";
    EXPECT_EQ(text.find("with\n"), std::string::npos) << "a newline out of a name";
  }
  const LoopDevice loop(mount / "dom1");
  const Result busy = Cowfs({"umount", directory});
  EXPECT_EQ(busy.status, 1);
  EXPECT_TRUE(Mentions(busy.err, loop.device()));
}

}  // namespace
}  // namespace cowfs::e2e
