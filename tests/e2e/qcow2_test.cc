// Policy `qcow2` on a real mount: a machine's disk goes to QEMU and comes back.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <memory>
#include <regex>

#include "tests/e2e/machine.h"
#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class Qcow2 : public MountTest {
 protected:
  std::unique_ptr<Mount> MountQcow2() const { return MountBase({"--policy", "qcow2"}); }
  // With two images that were written to; not mounted.
  std::unique_ptr<Mount> MountedOnce() const {
    MakeBase();
    auto mount = MountQcow2();
    for (const char* name : {"dom1", "dom2"}) {
      Touch(*mount / name);
      File(*mount / name).Write(0, RandomBytes(kMiB, 3));
    }
    mount->Unmount();
    return mount;
  }
  Path Layer(int number) const { return Store() / "layers" / (std::to_string(number) + ".qcow2"); }
  // What QEMU sees is what the mount shows, and nothing is wrong with the file.
  void ExpectSame(int layer, const Path& raw) const {
    Must(Execute({"qemu-img", "check", "-q", Layer(layer)}));
    Must(Execute({"qemu-img", "compare", "-f", "qcow2", "-F", "raw", Layer(layer), raw}));
  }
  void Qemu(int layer, const std::string& command) const {
    Must(Execute({"qemu-io", "-f", "qcow2", "-c", command, Layer(layer)}));
  }
};

TEST_F(Qcow2, AMachinesDiskGoesToQemuAndComesBack) {
  MakeTree(Scratch() / "tree");
  MakeExt4Image(Base(), 48 * kMiB, Scratch() / "tree");
  const std::string base_sum = Sha256(Base());
  auto mount = MountQcow2();
  const Path image = *mount / "dom1.img";
  const Path seen = Scratch() / "seen.raw";
  Touch(image);
  EXPECT_EQ(CowfsJson({"info", image})["cow_file"], Layer(1).string());
  EXPECT_TRUE(Mentions(Must(Cowfs({"info", image})), Layer(1).string()));
  {
    const LoopDevice loop(image);
    OtherMount disk(loop.device(), Scratch() / "disk");
    WriteFile(disk / "new", RandomBytes(9 * kMiB, 77));
    std::filesystem::remove(disk / "srv/data/file3");
    disk.Unmount();
  }
  Must(Cowfs({"check", MountPoint()}));
  // QEMU does not get what somebody uses.
  {
    const File in_use(image);
    EXPECT_NE(Execute({"qemu-io", "-f", "qcow2", "-c", "write 0 512", Layer(1)}).status, 0);
  }
  std::filesystem::copy_file(image, seen);
  mount->Unmount();
  ExpectSame(1, seen);
  Must(Cowfs({"check", Store()}));

  Qemu(1, "write -P 171 40M 1M");
  Must(Execute({"qemu-img", "resize", "-f", "qcow2", Layer(1), "64M"}));
  mount->MountAgain();
  EXPECT_EQ(std::filesystem::file_size(image), 64 * kMiB);
  EXPECT_TRUE(Same(Bytes(kMiB, '\xab'), File(image).Read(40 * kMiB, kMiB)));
  EXPECT_TRUE(Same(Bytes(kMiB, '\0'), File(image).Read(63 * kMiB, kMiB)));
  mount->Unmount();
  EXPECT_EQ(Sha256(Base()), base_sum);
}

TEST_F(Qcow2, MachinesGoOnWhileServersAreKilled) {
  MakeBase(32 * kMiB);
  auto mount = MountQcow2();
  for (const char* name : {"dom1", "dom2"}) Touch(*mount / name);
  {
    const LoopDevice loop(*mount / "dom1");
    Machine one(loop.device(), 128, 0);
    Machine two(*mount / "dom2", 128, O_DIRECT);
    for (int i = 0; i < 8; ++i) {
      SleepMilliseconds(300);
      const auto server = CowfsJson({"info", MountPoint()})["server_pid"].get<pid_t>();
      kill(server, SIGKILL);
      EXPECT_TRUE(Eventually([&] {
        return CowfsJson({"info", MountPoint()})["server_pid"] != server;
      }));
    }
    for (Machine* machine : {&one, &two}) machine->ExpectGoodEnd(10);
  }
  for (const char* name : {"dom1", "dom2"}) {
    std::filesystem::copy_file(*mount / name, Scratch() / name);
  }
  mount->Unmount();
  ExpectSame(1, Scratch() / "dom1");
  ExpectSame(2, Scratch() / "dom2");
  Must(Cowfs({"check", Store()}));
}

TEST_F(Qcow2, WhatACrashLeftIsCountedAnewAndReads) {
  MakeBase();
  auto mount = MountQcow2();
  Touch(*mount / "dom1");
  const Bytes bytes = RandomBytes(3 * kMiB, 5);
  {
    const File image(*mount / "dom1");
    image.Write(kMiB + 512, bytes);
    image.Sync();
  }
  mount->Kill();
  mount->Unmount();
  EXPECT_TRUE(Mentions(Must(Execute({"qemu-img", "info", Layer(1)})), "corrupt: false"));
  mount->MountAgain();
  EXPECT_TRUE(Same(bytes, File(*mount / "dom1").Read(kMiB + 512, bytes.size())));
  mount->Unmount();
  Must(Execute({"qemu-img", "check", "-q", Layer(1)}));
}

TEST_F(Qcow2, AnImageWhoseLayerIsNoneIsRefusedAndTheOthersGoOn) {
  const auto mount = MountedOnce();
  Must(Execute({"qemu-img", "snapshot", "-c", "before", Layer(1)}));
  const Result check = Cowfs({"check", Store()});
  EXPECT_NE(check.status, 0);
  EXPECT_TRUE(Mentions(check.out, "snapshots")) << check.out << check.err;
  mount->MountAgain();
  EXPECT_THROW(File(*mount / "dom1").Read(0, 512), std::exception);
  const Result refused = Execute({"cat", *mount / "dom1"});
  EXPECT_TRUE(Mentions(refused.err, "not supported")) << refused.err;
  Must(Cowfs({"sync", MountPoint()}));
  EXPECT_TRUE(Same(RandomBytes(kMiB, 3), File(*mount / "dom2").Read(0, kMiB)));
  mount->Unmount();
  Must(Execute({"qemu-img", "snapshot", "-d", "before", Layer(1)}));
  mount->MountAgain();
  EXPECT_TRUE(Same(RandomBytes(kMiB, 3), File(*mount / "dom1").Read(0, kMiB)));
}

TEST_F(Qcow2, AnImageWhoseLayerIsDamagedHoldsNothingUp) {
  const auto mount = MountedOnce();
  std::filesystem::copy_file(Base(), Scratch() / "other.img");
  Must(Execute({"qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b",
                Scratch() / "other.img", Layer(1)}));
  const std::string said = mount->MountAgain();
  EXPECT_TRUE(Mentions(said, "warning: " + MountPoint().string() + ": 1 image cannot be used"))
      << said;
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["failed_images"], 1);
  EXPECT_TRUE(Mentions(Must(Cowfs({"info", MountPoint()})), "failed images"));
  const std::string listed = Must(Cowfs({"ls", MountPoint()}));
  EXPECT_TRUE(std::regex_search(listed, std::regex("dom1 .* failed\n"))) << listed;
  EXPECT_TRUE(std::regex_search(listed, std::regex("dom2 .* ok\n"))) << listed;
  const Result refused = Execute({"cat", *mount / "dom1"});
  EXPECT_TRUE(Mentions(refused.err, "Structure needs cleaning")) << refused.err;
  const Result resized = Cowfs({"resize", "--force", *mount / "dom1", "1M"});
  EXPECT_EQ(resized.status, 1);
  EXPECT_TRUE(Mentions(resized.err, "the log of the mount says why")) << resized.err;
  EXPECT_TRUE(Mentions(Must(Cowfs({"info", *mount / "dom1"})), "other.img"));
  EXPECT_TRUE(CowfsJson({"info", *mount / "dom2"})["failure"].is_null());
  // Nothing of it is in use, so there is nothing of it to be made durable.
  Must(Cowfs({"sync", MountPoint()}));
  EXPECT_TRUE(Same(RandomBytes(kMiB, 3), File(*mount / "dom2").Read(0, kMiB)));
  // What cannot be opened is in nobody's use.
  Must(Cowfs({"rm", *mount / "dom1"}));
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["failed_images"], 0);
  Must(Cowfs({"umount", MountPoint()}));
}

}  // namespace
}  // namespace cowfs::e2e
