// ls and info: what they tell of images, stores, mounts and the host, to people and to programs.

#include <gtest/gtest.h>

#include <regex>
#include <set>

#include "tests/e2e/places.h"

namespace cowfs::e2e {
namespace {

std::set<std::string> Keys(const Json& object) {
  std::set<std::string> keys;
  for (const auto& item : object.items()) {
    keys.insert(item.key());
  }
  return keys;
}

class Facts : public PlaceTest {};

TEST_P(Facts, LsAndInfoOfAnImageTellTheSame) {
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
  EXPECT_EQ(Keys(listed[0]), (std::set<std::string>{"name", "size", "own_bytes", "private_percent",
                                                    "inode", "mode", "uid", "gid", "modified",
                                                    "changed", "created", "failure", "users"}));
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

TEST_P(Facts, AFreshImageHasNoCowFile) {
  Must(Command("create", {"dom1"}));
  const Json info = CowfsJson(Line("info", {"dom1"}));
  EXPECT_TRUE(info["cow_file"].is_null()) << info["cow_file"];
  EXPECT_EQ(info["own_bytes"], 0);
  EXPECT_EQ(info["private_percent"], 0);
}

TEST_P(Facts, LsAndInfoForPeopleTellTheFacts) {
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

INSTANTIATE_TEST_SUITE_P(Places, Facts, testing::Values(Where::kMounted, Where::kOffline),
                         [](const testing::TestParamInfo<Where>& where) {
                           return NameOf(where.param);
                         });

class FactsOffline : public MountTest {};

TEST_F(FactsOffline, LookingChangesNothingInTheStore) {
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

TEST_F(FactsOffline, InfoOfAStoreTellsItsFacts) {
  MakeBase();
  auto mount = MountBase({"--chunk-size", "64K"});
  WriteFile(*mount / "dom1", RandomBytes(kMiB, 1));
  Touch(*mount / "dom2");
  mount->Unmount();
  const Json info = CowfsJson({"info", Store()});
  EXPECT_EQ(Keys(info), (std::set<std::string>{"kind", "base", "base_format", "base_snapshot",
                                               "backing", "base_size", "base_written", "store",
                                               "chunk_size", "policy", "format_version", "images",
                                               "own_bytes", "free_bytes", "total_bytes", "version",
                                               "mounted_on", "pool", "failed_images"}));
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

class FactsOnMounts : public MountTest {};

TEST_F(FactsOnMounts, InfoOfAMountTellsItsFacts) {
  MakeBase();
  auto mount = MountBase();
  WriteFile(*mount / "dom1", RandomBytes(kMiB, 1));
  const Json info = CowfsJson({"info", MountPoint()});
  EXPECT_EQ(Keys(info),
            (std::set<std::string>{"kind",           "mount",     "base",         "base_size",
                                   "base_written",   "store",     "chunk_size",   "policy",
                                   "format_version", "images",    "own_bytes",    "free_bytes",
                                   "total_bytes",    "cache",     "full",         "parked",
                                   "used_percent",   "watermark", "read_only",    "server_pid",
                                   "keeper_pid",     "restarts",  "last_restart", "version",
                                   "sandbox",        "resend",    "base_format",  "base_snapshot",
                                   "backing",        "pool",      "failed_images"}));
  EXPECT_EQ(info["kind"], "mount");
  EXPECT_EQ(info["mount"], MountPoint().string());
  EXPECT_EQ(info["base"], Base().string());
  EXPECT_EQ(info["base_size"], 8 * kMiB);
  EXPECT_EQ(info["store"], Store().string());
  EXPECT_EQ(info["chunk_size"], 4096);
  EXPECT_EQ(info["policy"], "sparse");
  EXPECT_TRUE(info["pool"].is_null());
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

TEST_F(FactsOnMounts, LsWithoutArgumentsListsTheHostsMounts) {
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

TEST_F(FactsOnMounts, ABarShowsThePrivatePartOnATerminalOnly) {
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

TEST_F(FactsOnMounts, WhatTurnsTextOrIsNotSeenIsShownEscaped) {
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
