// check: on stores at rest and on mounts: what it says, and its exit status.

#include <gtest/gtest.h>
#include <linux/falloc.h>

#include <atomic>
#include <set>
#include <thread>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class Check : public MountTest {
 protected:
  // A store that is not mounted, with an image dom1 that has written its first 64 KiB.
  void MakeStore() {
    MakeBase(2 * kMiB);
    const auto mount = MountBase();
    Touch(*mount / "dom1");
    const File image(*mount / "dom1");
    image.Write(0, RandomBytes(64 * kKiB, 7));
    image.Sync();
  }
  Path CowFile() const { return Store() / "layers" / "1.cow"; }
  void Damage() const {
    File(CowFile()).Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 4096);
  }
  void Leak() const { File(CowFile()).Write(kMiB, RandomBytes(8192, 8)); }
};

TEST_F(Check, ExitStatusTellsCleanDamageAndLeaksApart) {
  MakeStore();
  const Result clean = Cowfs({"check", Store()});
  EXPECT_EQ(clean.status, 0) << clean.err;
  EXPECT_EQ(clean.out, "clean; 1 image\n");

  Leak();
  const Result leaks = Cowfs({"check", Store()});
  EXPECT_EQ(leaks.status, 3) << leaks.err;
  EXPECT_TRUE(Mentions(leaks.out, "leak: dom1: bytes 1048576 to 1056767: "));
  EXPECT_TRUE(Mentions(leaks.out, "--repair gives the space back\n"));
  EXPECT_TRUE(Mentions(leaks.out, "1 leak of 8 KiB; 1 image\n"));

  Damage();
  const Result damage = Cowfs({"check", Store()});
  EXPECT_EQ(damage.status, 2) << damage.err;
  EXPECT_TRUE(Mentions(damage.out, "damage: dom1: bytes 8192 to 12287: present chunks"));

  const Result repair = Cowfs({"check", "--repair", Store()});
  EXPECT_EQ(repair.status, 2) << repair.err;
  EXPECT_TRUE(Mentions(repair.out, "; repaired\n"));
  EXPECT_TRUE(Mentions(repair.out, "damaged in 1 place; 1 image; 1 finding repaired\n"));
  EXPECT_FALSE(Mentions(Cowfs({"check", Store()}).out, "leak"));
}

TEST_F(Check, WhatCannotBeCheckedEndsWithOne) {
  MakeStore();
  for (const Arguments& arguments : std::vector<Arguments>{
           {"check"},
           {"check", "--nonsense", Store()},
           {"check", Store(), Store()},
           {"check", "--base", "--record-base", Store()},
           {"check", "--clear"},
           {"check", "--clear", "--repair", Store()},
           {"check", Scratch() / "nowhere"},
           {"check", Scratch()},
           {"check", Base()},
           {"check", "--base", Store()},
           {"check", "--clear", "--store", Store(), "nobody"},
       }) {
    const Result result = Cowfs(arguments);
    EXPECT_EQ(result.status, 1) << result.command;
    EXPECT_TRUE(result.err.starts_with("cowfs check: ")) << result.err;
    EXPECT_EQ(result.out, "");
  }
}

TEST_F(Check, WithoutRepairNothingChanges) {
  MakeStore();
  Leak();
  Damage();
  const std::string before = TreeSnapshot(Store());
  EXPECT_EQ(Cowfs({"check", Store()}).status, 2);
  EXPECT_EQ(TreeSnapshot(Store()), before);
}

TEST_F(Check, JsonHoldsAllThatIsSaid) {
  MakeStore();
  Leak();
  const Result result = Cowfs({"check", "--json", Store()});
  EXPECT_EQ(result.status, 3);
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json.at("store"), Store().string());
  EXPECT_TRUE(json.at("mount").is_null());
  EXPECT_EQ(json.at("state"), "leaks");
  EXPECT_EQ(json.at("images"), 1);
  EXPECT_EQ(json.at("damage"), 0);
  EXPECT_EQ(json.at("leaks"), 1);
  EXPECT_EQ(json.at("leaked_bytes"), 8192);
  EXPECT_EQ(json.at("repaired"), 0);
  const Json& finding = json.at("findings").at(0);
  EXPECT_EQ(finding.at("severity"), "leak");
  EXPECT_EQ(finding.at("kind"), "leaked_space");
  EXPECT_EQ(finding.at("image"), "dom1");
  EXPECT_EQ(finding.at("layer"), 1);
  EXPECT_EQ(finding.at("offset"), kMiB);
  EXPECT_EQ(finding.at("length"), 8192);
  EXPECT_EQ(finding.at("repairable"), true);
  EXPECT_EQ(finding.at("repaired"), false);
}

TEST_F(Check, AStoreThatIsMountedIsRefusedAndTheMountIsNamed) {
  MakeBase(2 * kMiB);
  const auto mount = MountBase();
  const Result result = Cowfs({"check", Store()});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "cowfs check " + MountPoint().string()));
}

TEST_F(Check, AMountIsCheckedAndItsLeaksAreRepaired) {
  MakeStore();
  const auto mount = MountBase();
  EXPECT_EQ(Cowfs({"check", MountPoint()}).out, "clean; 1 image\n");
  const Bytes content = ReadFile(*mount / "dom1");
  Leak();
  const Result leaks = Cowfs({"check", MountPoint()});
  EXPECT_EQ(leaks.status, 3) << leaks.err;
  EXPECT_TRUE(Mentions(leaks.out, "leak: dom1: bytes 1048576 to 1056767: "));
  Damage();
  const Result repair = Cowfs({"check", "--repair", "--json", MountPoint()});
  EXPECT_EQ(repair.status, 2) << repair.err;
  const Json json = Json::parse(repair.out);
  EXPECT_EQ(json.at("mount"), MountPoint().string());
  EXPECT_EQ(json.at("repaired"), 1);
  EXPECT_EQ(json.at("damage"), 1);
  Bytes expected = content;
  expected.replace(8192, 4096, Zeros(4096));
  const File image(*mount / "dom1");
  image.DropPages();
  EXPECT_TRUE(Same(expected, image.ReadAll()));
}

TEST_F(Check, ManyFindingsComeThroughWhole) {
  MakeStore();
  for (uint64_t i = 0; i < 300; ++i) {
    File(CowFile()).Write(4 * kMiB + i * 8192, RandomBytes(4096, 1));
  }
  const auto mount = MountBase();
  const Result result = Cowfs({"check", "--json", MountPoint()});
  EXPECT_EQ(result.status, 3) << result.err;
  const Json json = Json::parse(result.out);
  EXPECT_EQ(json.at("leaks"), 300);
  std::set<uint64_t> offsets;
  for (const Json& finding : json.at("findings"))
    offsets.insert(finding.at("offset").get<uint64_t>());
  EXPECT_EQ(offsets.size(), 300U);
  const Result text = Cowfs({"check", MountPoint()});
  EXPECT_TRUE(Mentions(text.out, "dom1: 280 more like this (leaked_space)"));
}

TEST_F(Check, AMountIsCheckedForItsOwnerOnly) {
  MakeStore();
  const auto mount = MountBase();
  std::filesystem::permissions(Scratch(), std::filesystem::perms::all);
  const Result result = Cowfs({"check", MountPoint()}, {.as_nobody = true});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "only root and who mounted it"));
}

TEST_F(Check, NoFalseAlarmWhileGuestsWriteAndTrim) {
  MakeBase(4 * kMiB);
  const auto mount = MountBase();
  std::atomic<bool> stop = false;
  std::vector<std::thread> guests;
  for (uint32_t i = 0; i < 8; ++i) {
    const Path path = *mount / ("dom" + std::to_string(i));
    Touch(path);
    guests.emplace_back([&stop, path, i] {
      const File image(path);
      const Bytes bytes = RandomBytes(32 * kKiB, i);
      for (uint64_t n = i; !stop; ++n) {
        const uint64_t at = n * 7919 % 1000 * 4096;
        image.Write(at, bytes);
        if (n % 8 == 0) image.Sync();
        image.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (at * 3) % (3 * kMiB), 65536);
      }
    });
  }
  for (int round = 0; round < 10; ++round) {
    const Result result = Cowfs({"check", MountPoint()});
    EXPECT_EQ(result.status, 0) << result.out << result.err;
  }
  stop = true;
  for (std::thread& guest : guests) guest.join();
}

TEST_F(Check, TheWholeBaseIsComparedWithWhatWasRecorded) {
  MakeStore();
  EXPECT_EQ(Cowfs({"check", "--record-base", Store()}).status, 0);
  EXPECT_EQ(Cowfs({"check", "--base", Store()}).status, 0);
  // Another time, the same content: refused, and accepted after a full comparison.
  Must(Execute({"touch", "-d", "2001-01-01", Base().string()}));
  const Result refused = Cowfs({"mount", Base(), MountPoint()});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, "cowfs check --base"));
  EXPECT_EQ(Cowfs({"check", "--base", Store()}).status, 0);
  {
    const auto mount = MountBase();
    EXPECT_EQ(Cowfs({"check", "--record-base", MountPoint()}).status, 0);
    EXPECT_EQ(Cowfs({"check", "--base", MountPoint()}).status, 0);
  }
  File(Base()).Write(100, "x");
  const Result changed = Cowfs({"check", "--base", Store()});
  EXPECT_EQ(changed.status, 2);
  EXPECT_TRUE(Mentions(changed.out, "damage: base: it is not what it was"));
  EXPECT_EQ(Cowfs({"check", Store()}).status, 2);
}

TEST_F(Check, AMovedBaseIsComparedWhereItLies) {
  MakeStore();
  Must(Cowfs({"check", "--record-base", Store()}));
  const Path moved = Scratch() / "moved.img";
  std::filesystem::rename(Base(), moved);
  Must(Execute({"touch", "-d", "2001-01-01", moved.string()}));
  // What a mount advises is what can be done.
  const Result refused = Cowfs({"mount", moved, MountPoint(), "--store", Store()});
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(Mentions(refused.err, "`cowfs check --base --base-path " + moved.string() + "`"));
  EXPECT_EQ(Cowfs({"check", "--base", Store()}).status, 1);
  EXPECT_EQ(Cowfs({"check", "--base-path", moved, Store()}).status, 1);
  Must(Cowfs({"check", "--base", "--base-path", moved, Store()}));
  EXPECT_EQ(Cowfs({"check", Store()}).out, "clean; 1 image\n");
}

TEST_F(Check, ACowFileThatIsGoneCanBeCopiedOutWhileItIsMounted) {
  MakeStore();
  const auto mount = MountBase();
  const Bytes content = ReadFile(*mount / "dom1");
  const File image(*mount / "dom1");
  std::filesystem::remove(CowFile());
  const Result check = Cowfs({"check", MountPoint()});
  EXPECT_EQ(check.status, 2);
  EXPECT_TRUE(Mentions(check.out, "copy the image out before anything else"));
  image.DropPages();
  EXPECT_TRUE(Same(content, image.ReadAll()));
  // Put back, all is well.
  Must(Execute({"cp", (*mount / "dom1").string(), CowFile().string()}));
}

TEST_F(Check, AFailedImageIsToldAndCleared) {
  MakeStore();
  Must(Execute({"python3", "-c",
                "import sqlite3, sys\n"
                "catalog = sqlite3.connect(sys.argv[1])\n"
                "catalog.execute(\"UPDATE layer SET failure = 'a sync failed'\")\n"
                "catalog.commit()",
                (Store() / "catalog.db").string()}));
  const Result told = Cowfs({"check", Store()});
  EXPECT_EQ(told.status, 2);
  EXPECT_TRUE(Mentions(told.out, "damage: dom1: writes to it fail"));
  {
    const auto mount = MountBase();
    EXPECT_EQ(Cowfs({"check", MountPoint()}).status, 2);
    const Result in_use = [&] {
      const File image(*mount / "dom1", O_RDONLY);
      return Cowfs({"check", "--clear", *mount / "dom1"});
    }();
    EXPECT_EQ(in_use.status, 1);
    EXPECT_TRUE(Mentions(in_use.err, "is in use"));
    std::filesystem::permissions(Scratch(), std::filesystem::perms::all);
    const Result other = Cowfs({"check", "--clear", *mount / "dom1"}, {.as_nobody = true});
    EXPECT_EQ(other.status, 1);
    // The server hears of a close a little later.
    EXPECT_TRUE(Eventually([&] {
      return Cowfs({"check", "--clear", *mount / "dom1"}).status == 0;
    }));
    EXPECT_EQ(Cowfs({"check", MountPoint()}).status, 0);
    File(*mount / "dom1").Write(0, "x");
  }
}

}  // namespace
}  // namespace cowfs::e2e
