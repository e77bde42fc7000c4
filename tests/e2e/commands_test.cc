// create, ls, info, rm, mv, resize and sync: on images in a mount and, with --store, without one.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <regex>
#include <set>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

std::set<std::string> Keys(const Json& object) {
  std::set<std::string> keys;
  for (const auto& item : object.items()) {
    keys.insert(item.key());
  }
  return keys;
}

// Where a command finds its images: in a mount, or in a store that is not mounted.
enum class Where { kMounted, kOffline };

class Commands : public MountTest, public testing::WithParamInterface<Where> {
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

TEST_P(Commands, LsAndInfoOfAnImageTellTheSame) {
  Must(Command("create", {"dom1"}, {"--size", "16M", "--owner", "1234:5678", "--mode", "640"}));
  {
    const File image(Mounted() / "dom1");
    image.Write(kMiB, RandomBytes(4 * kMiB, 1));
    image.Sync();
  }
  if (Offline()) {
    mount_->Unmount();
  }
  const Json listed =
      Offline() ? CowfsJson({"ls", "--store", Store()}) : CowfsJson({"ls", MountPoint()});
  ASSERT_TRUE(listed.is_array());
  ASSERT_EQ(listed.size(), 1U);
  EXPECT_EQ(Keys(listed[0]),
            (std::set<std::string>{"name", "size", "own_bytes", "private_percent", "inode", "mode",
                                   "uid", "gid", "modified", "changed", "created", "users"}));
  const Json info = CowfsJson(Line("info", {"dom1"}));
  EXPECT_EQ(Keys(info),
            (std::set<std::string>{"kind",   "name",     "size",        "own_bytes",
                                   "inode",  "mode",     "uid",         "private_percent",
                                   "gid",    "modified", "changed",     "created",
                                   "base",   "cow_file", "chunk_size",  "failure",
                                   "parked", "policy",   "space_limit", "users"}));
  for (const auto& item : listed[0].items()) {
    EXPECT_EQ(info[item.key()], item.value()) << item.key();
  }
  EXPECT_EQ(info["kind"], "image");
  EXPECT_EQ(info["name"], "dom1");
  EXPECT_EQ(info["size"], 16 * kMiB);
  EXPECT_TRUE(Takes(4 * kMiB, info["own_bytes"]));
  EXPECT_NEAR(info["private_percent"].get<double>(), 25.0, 0.5);
  EXPECT_EQ(info["mode"], "0640");
  EXPECT_EQ(info["uid"], 1234);
  EXPECT_EQ(info["gid"], 5678);
  EXPECT_EQ(info["base"], Base().string());
  EXPECT_EQ(info["chunk_size"], 4096);
  EXPECT_EQ(info["policy"], "sparse");
  EXPECT_EQ(info["users"], Json::array());
  const Path cow_file = info["cow_file"].get<std::string>();
  EXPECT_GE(AllocatedBytes(cow_file), 4 * kMiB);
  EXPECT_EQ(cow_file.parent_path(), Store() / "layers");
  EXPECT_TRUE(Mentions(Must(Command("info", {"dom1"})), cow_file));
  const std::regex time(R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z)");
  for (const char* const key : {"modified", "changed", "created"}) {
    EXPECT_TRUE(std::regex_match(info[key].get<std::string>(), time)) << info[key];
  }
  EXPECT_EQ(info["inode"].get<uint64_t>(), StatOf(Mounted() / "dom1").st_ino);
}

TEST_P(Commands, AFreshImageHasNoCowFile) {
  Must(Command("create", {"dom1"}));
  const Json info = CowfsJson(Line("info", {"dom1"}));
  EXPECT_TRUE(info["cow_file"].is_null()) << info["cow_file"];
  EXPECT_EQ(info["own_bytes"], 0);
  EXPECT_EQ(info["private_percent"], 0);
}

TEST_P(Commands, LsAndInfoForPeopleTellTheFacts) {
  Must(Command("create", {"dom1", "dom2"}, {"--size", "16M"}));
  const std::string all =
      Must(Offline() ? Cowfs({"ls", "--store", Store()}) : Cowfs({"ls", MountPoint()}));
  EXPECT_TRUE(Mentions(all, "dom1"));
  EXPECT_TRUE(Mentions(all, "dom2"));
  EXPECT_TRUE(std::regex_search(all, std::regex(R"(16(\.0)? ?M)"))) << all;
  EXPECT_EQ(all.find('\x1b'), std::string::npos) << "escape sequences in a pipe";
  const std::string one = Must(Command("ls", {"dom2"}));
  EXPECT_TRUE(Mentions(one, "dom2"));
  EXPECT_EQ(one.find("dom1"), std::string::npos);
  const std::string info = Must(Command("info", {"dom1"}));
  EXPECT_TRUE(Mentions(info, Base().string()));
  EXPECT_TRUE(Mentions(info, "sparse"));
  EXPECT_EQ(CowfsJson(Line("info", {"dom1", "dom2"})).size(), 2U);
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
                           return where.param == Where::kMounted ? "Mounted" : "Offline";
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

TEST_F(CommandsOffline, LookingChangesNothingInTheStore) {
  MakeBase();
  {
    auto mount = MountBase();
    WriteFile(*mount / "dom1", "x");
    mount->Unmount();
  }
  const std::string before = TreeSnapshot(Store());
  EXPECT_EQ(CowfsJson({"ls", "--store", Store()}).size(), 1U);
  EXPECT_EQ(CowfsJson({"info", Store()})["images"], 1);
  EXPECT_EQ(CowfsJson({"info", "dom1", "--store", Store()})["name"], "dom1");
  EXPECT_EQ(TreeSnapshot(Store()), before);
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

TEST_F(CommandsOffline, InfoOfAStoreTellsItsFacts) {
  MakeBase();
  auto mount = MountBase({"--chunk-size", "64K"});
  WriteFile(*mount / "dom1", RandomBytes(kMiB, 1));
  Touch(*mount / "dom2");
  mount->Unmount();
  const Json info = CowfsJson({"info", Store()});
  EXPECT_EQ(Keys(info),
            (std::set<std::string>{"kind", "base", "base_size", "base_written", "store",
                                   "chunk_size", "policy", "format_version", "images", "own_bytes",
                                   "free_bytes", "total_bytes", "version", "mounted_on"}));
  EXPECT_EQ(info["kind"], "store");
  EXPECT_EQ(info["base"], Base().string());
  EXPECT_EQ(info["store"], Store().string());
  EXPECT_EQ(info["chunk_size"], 65'536);
  EXPECT_EQ(info["images"], 2);
  EXPECT_TRUE(Takes(kMiB, info["own_bytes"]));
  EXPECT_TRUE(info["mounted_on"].is_null());
  mount->MountAgain();
  EXPECT_EQ(CowfsJson({"info", Store()})["mounted_on"], MountPoint().string());
}

class CommandsOnMounts : public MountTest {};

TEST_F(CommandsOnMounts, InfoOfAMountTellsItsFacts) {
  MakeBase();
  auto mount = MountBase();
  WriteFile(*mount / "dom1", RandomBytes(kMiB, 1));
  const Json info = CowfsJson({"info", MountPoint()});
  EXPECT_EQ(
      Keys(info),
      (std::set<std::string>{
          "kind",        "mount",      "base",           "base_size", "base_written", "store",
          "chunk_size",  "policy",     "format_version", "images",    "own_bytes",    "free_bytes",
          "total_bytes", "cache",      "full",           "parked",    "used_percent", "watermark",
          "read_only",   "server_pid", "version"}));
  EXPECT_EQ(info["kind"], "mount");
  EXPECT_EQ(info["mount"], MountPoint().string());
  EXPECT_EQ(info["base"], Base().string());
  EXPECT_EQ(info["base_size"], 8 * kMiB);
  EXPECT_EQ(info["store"], Store().string());
  EXPECT_EQ(info["chunk_size"], 4096);
  EXPECT_EQ(info["policy"], "sparse");
  EXPECT_EQ(info["images"], 1);
  EXPECT_TRUE(Takes(kMiB, info["own_bytes"]));
  EXPECT_EQ(info["cache"], "writeback");
  EXPECT_EQ(info["read_only"], false);
  EXPECT_GT(info["free_bytes"].get<uint64_t>(), 0U);
  EXPECT_GT(info["total_bytes"].get<uint64_t>(), info["free_bytes"].get<uint64_t>());
  EXPECT_TRUE(ProcessExists(info["server_pid"].get<pid_t>()));
  EXPECT_TRUE(Mentions(Must(Cowfs({"--version"})), info["version"].get<std::string>()));
  const std::string text = Must(Cowfs({"info", MountPoint()}));
  EXPECT_TRUE(Mentions(text, Base().string()));
  EXPECT_TRUE(Mentions(text, Store().string()));
  EXPECT_TRUE(Mentions(text, "sparse"));
}

TEST_F(CommandsOnMounts, LsWithoutArgumentsListsTheHostsMounts) {
  MakeBase();
  WriteFile(Scratch() / "other.img", RandomBytes(kMiB, 3));
  auto mount = MountBase();
  const Mount other(Scratch() / "other.img", Scratch() / "other vms",
                    {"--store", Scratch() / "elsewhere"});
  Touch(*mount / "dom1");
  Touch(*mount / "dom2");
  const auto find = [&](const Path& directory) {
    for (const Json& row : CowfsJson({"ls"})) {
      if (row["mount"] == directory.string()) {
        return row;
      }
    }
    return Json();
  };
  const Json row = find(MountPoint());
  ASSERT_TRUE(row.is_object());
  EXPECT_EQ(Keys(row),
            (std::set<std::string>{"mount", "base", "store", "images", "free_bytes", "state"}));
  EXPECT_EQ(row["base"], Base().string());
  EXPECT_EQ(row["store"], Store().string());
  EXPECT_EQ(row["images"], 2);
  EXPECT_EQ(row["state"], "serving");
  EXPECT_GT(row["free_bytes"].get<uint64_t>(), 0U);
  EXPECT_EQ(find(other.directory())["store"], (Scratch() / "elsewhere").string());
  const std::string text = Must(Cowfs({"ls"}));
  EXPECT_TRUE(Mentions(text, MountPoint().string()));
  EXPECT_TRUE(Mentions(text, Base().string()));
  EXPECT_TRUE(Mentions(text, other.directory().string()));

  mount->Kill();
  EXPECT_EQ(find(MountPoint())["state"], "dead");
  EXPECT_TRUE(Mentions(Must(Cowfs({"ls"})), "dead"));
  Must(Cowfs({"umount", MountPoint()}));
  EXPECT_TRUE(find(MountPoint()).is_null());
}

TEST_F(CommandsOnMounts, ABarShowsThePrivatePartOnATerminalOnly) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "empty");
  WriteFile(*mount / "full", RandomBytes(8 * kMiB, 1));
  Must(Cowfs({"sync", MountPoint()}));
  const std::string command = Quoted(Program()) + " ls " + Quoted(MountPoint());
  const std::string terminal =
      Must(Execute({"script", "-qec", command, "/dev/null"}, {.environment = "TERM=xterm"}));
  const std::string pipe = Must(Shell(command));
  // A row with its words and figures taken out: what is left is the bar.
  const auto bar = [](const std::string& text, const std::string& name) {
    const size_t at = text.find(name);
    if (at == std::string::npos) {
      return std::string("no row of ") + name;
    }
    const size_t start = text.rfind('\n', at) == std::string::npos ? 0 : text.rfind('\n', at) + 1;
    const std::string row = text.substr(start, text.find('\n', at) - start);
    return std::regex_replace(row, std::regex("[A-Za-z0-9:.,%+ \\r-]"), "");
  };
  EXPECT_NE(bar(terminal, "full"), bar(terminal, "empty"));
  EXPECT_EQ(bar(pipe, "full"), bar(pipe, "empty")) << pipe;
}

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

TEST_F(CommandsOnMounts, WhatTurnsTextOrIsNotSeenIsShownEscaped) {
  const std::string turn = "\u202e";
  const Path base = Scratch() / ("base" + turn + "gmi");
  WriteFile(base, RandomBytes(kMiB, 1));
  const Path log = Scratch() / "log";
  const Mount mount(base, MountPoint(), {"--log-file", log});
  const std::string name = "dom" + turn + "gmi.1";
  Touch(mount / name);
  Touch(mount / (name + "\xff"));
  const std::string escaped = "\\xe2\\x80\\xaegmi";
  const auto expect_escaped = [&](const std::string& text) {
    EXPECT_TRUE(Mentions(text, escaped));
    EXPECT_EQ(text.find(turn), std::string::npos) << text;
    EXPECT_EQ(text.find('\xff'), std::string::npos) << text;
  };
  expect_escaped(Must(Cowfs({"ls"})));
  expect_escaped(Must(Cowfs({"ls", MountPoint()})));
  expect_escaped(Must(Cowfs({"info", mount / name})));
  expect_escaped(Cowfs({"info", mount / (name + "none")}).err);
  expect_escaped(Cowfs({"rm" + turn + "gmi"}).err);
  expect_escaped(ReadFile(log));
  // A program that reads JSON gets the name as it is.
  const std::string json = Must(Cowfs({"info", "--json", mount / name}));
  EXPECT_EQ(json.find(turn), std::string::npos) << json;
  EXPECT_EQ(Json::parse(json)["name"], name);
}

}  // namespace
}  // namespace cowfs::e2e
