// A base of QEMU's formats: mounted, written over, mounted again, handed to other servers, and
// refused where it is not what it was or leads where it must not.

#include <gtest/gtest.h>

#include <csignal>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class BaseFormats : public MountTest {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (!IsSkipped() && Execute({"qemu-img", "--version"}).status != 0) {
      GTEST_SKIP() << "qemu-img is not installed (qemu-utils)";
    }
  }

  Path Raw() const { return Scratch() / "raw.img"; }
  Path Image() const { return Scratch() / "base.img"; }
  Path Log() const { return Scratch() / "log"; }
  // Random bytes, text and holes.
  Bytes MakeRaw(uint64_t size = 9 * kMiB + 1536) const {
    Bytes content = Zeros(size);
    content.replace(0, kMiB, RandomBytes(kMiB, 1));
    for (uint64_t i = 2 * kMiB; i < 3 * kMiB; ++i) content[i] = static_cast<char>('a' + i % 23);
    content.replace(size - 1000, 1000, RandomBytes(1000, 2));
    WriteSparseFile(Raw(), content);
    return content;
  }
  void Qemu(const std::string& command) const {
    Must(Shell("cd " + Quoted(Scratch()) + "; " + command));
  }
  // A chain of two, in which the base has its own at 2 MiB.
  Bytes MakeChain() const {
    Bytes content = MakeRaw();
    Qemu("qemu-img convert -c -O qcow2 raw.img below.qcow2");
    Qemu("qemu-img create -q -f qcow2 -b below.qcow2 -F qcow2 base.img");
    Qemu("qemu-io -c 'write -P 77 2M 100k' base.img");
    content.replace(2 * kMiB, 100 * kKiB, Bytes(100 * kKiB, 77));
    return content;
  }
  std::string Refusal(Arguments arguments = {}) const {
    std::filesystem::create_directories(MountPoint());
    const Undo undo = UnmountCowfsAtEnd(MountPoint());
    arguments.insert(arguments.begin(), {"mount", Image(), MountPoint()});
    return Cowfs(arguments).err;
  }
};

struct Made {
  std::string name;
  std::string how;
};

class EachFormat : public BaseFormats, public testing::WithParamInterface<Made> {};

TEST_P(EachFormat, IsServedAndWrittenOver) {
  Bytes content = MakeRaw();
  Qemu("qemu-img convert " + GetParam().how + " raw.img base.img");
  auto mount = MountBase();
  const std::string format = GetParam().how.find("-O qcow2") != Bytes::npos ? "qcow2" : "qcow";
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["base_format"], format);
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["base_size"], content.size());
  Touch(*mount / "dom1");
  EXPECT_TRUE(Same(content, ReadFile(*mount / "dom1")));
  {
    const File image(*mount / "dom1");
    const Bytes written = RandomBytes(300'001, 5);
    image.Write(2'999'000, written);
    content.replace(2'999'000, written.size(), written);
    image.Sync();
  }
  const std::string sum = Sha256(Image());
  mount->Remount();
  EXPECT_TRUE(Same(content, ReadFile(*mount / "dom1")));
  {
    const LoopDevice loop(*mount / "dom1", {"--direct-io=on"});
    EXPECT_TRUE(Same(content, File(loop.device(), O_RDONLY).Read(0, content.size())));
  }
  Must(Execute({"cp", *mount / "dom1", *mount / "copy"}));
  EXPECT_TRUE(Same(content, ReadFile(*mount / "copy")));
  EXPECT_EQ(Sha256(Image()), sum);
}

INSTANTIATE_TEST_SUITE_P(All, EachFormat,
                         testing::Values(Made{"Qcow2", "-O qcow2"},
                                         Made{"Qcow2Old", "-O qcow2 -o compat=0.10"},
                                         Made{"Zlib", "-c -O qcow2"},
                                         Made{"Zstd", "-c -O qcow2 -o compression_type=zstd"},
                                         Made{"Extended", "-O qcow2 -o extended_l2=on"},
                                         Made{"Qcow", "-O qcow"}),
                         [](const testing::TestParamInfo<Made>& made) { return made.param.name; });

TEST_F(BaseFormats, AnotherServerGoesOnWithTheWholeChain) {
  Bytes content = MakeChain();
  auto mount = MountBase({"--log-file", Log()});
  WriteFile(*mount / "own", "x");
  Touch(*mount / "dom1");
  Must(Cowfs({"restart", MountPoint()}));
  EXPECT_TRUE(Same(content, ReadFile(*mount / "dom1")));
  ASSERT_EQ(kill(CowfsJson({"info", MountPoint()})["server_pid"].get<pid_t>(), SIGKILL), 0);
  Must(Execute({"sh", "-c", "echo 3 >/proc/sys/vm/drop_caches"}));
  EXPECT_TRUE(Same(content, ReadFile(*mount / "dom1")));
  const Json info = CowfsJson({"info", MountPoint()});
  EXPECT_EQ(info["restarts"], 2);
  ASSERT_EQ(info["backing"].size(), 1U);
  EXPECT_EQ(info["backing"][0]["path"], (Scratch() / "below.qcow2").string());
  EXPECT_EQ(info["backing"][0]["format"], "qcow2");
  EXPECT_TRUE(Mentions(Must(Cowfs({"info", MountPoint()})), "below.qcow2 (qcow2)"));
}

TEST_F(BaseFormats, AChangedBackingFileIsNoticedAndRefused) {
  const Bytes content = MakeChain();
  auto mount = MountBase({"--log-file", Log()});
  Touch(*mount / "dom1");
  EXPECT_TRUE(CowfsJson({"info", MountPoint()})["base_written"].is_null());
  { const File writer(Scratch() / "below.qcow2", O_WRONLY); }
  EXPECT_TRUE(Eventually([&] {
    return CowfsJson({"info", MountPoint()})["base_written"].is_string();
  }));
  EXPECT_TRUE(Mentions(ReadFile(Log()), "below.qcow2: was opened for writing"));
  mount->Unmount();
  Qemu("qemu-io -c 'write -P 1 4M 64k' below.qcow2");
  const std::string refusal = Refusal();
  EXPECT_TRUE(Mentions(refusal, "its backing file " + (Scratch() / "below.qcow2").string()));
  EXPECT_TRUE(Mentions(Must(Shell(Quoted(Program()) + " check " + Quoted(Store()) + " || true")),
                       "below.qcow2"));
  EXPECT_EQ(Refusal({"--accept-changed-base"}), "");
  EXPECT_EQ(Refusal(), "");
}

TEST_F(BaseFormats, TheWholeDiskIsCompared) {
  MakeChain();
  auto mount = MountBase();
  Must(Cowfs({"check", "--record-base", MountPoint()}));
  EXPECT_TRUE(Mentions(Must(Cowfs({"check", "--base", MountPoint()})), "every byte"));
  mount->Unmount();
  Must(Cowfs({"check", "--base", Store()}));
  EXPECT_EQ(Cowfs({"check", Store()}).status, 0);
  Qemu("touch -d 2001-01-01 below.qcow2");
  EXPECT_TRUE(Mentions(Refusal(), "was modified"));
  Must(Cowfs({"check", "--base", Store()}));
  EXPECT_EQ(Refusal(), "");
}

TEST_F(BaseFormats, AHeaderThatAGuestWroteIsNeverFollowed) {
  const Bytes content = MakeBase();
  MountBase().reset();
  Qemu("qemu-img create -q -u -f qcow2 -b /etc/shadow -F raw evil 8M");
  // As a guest that had the base itself for its disk once.
  Bytes header = ReadFile(Scratch() / "evil");
  File(Image()).Write(0, header);
  auto mount = MountBase({"--accept-changed-base", "--log-file", Log()});
  Touch(*mount / "dom1");
  Bytes want = content;
  want.replace(0, header.size(), header);
  EXPECT_TRUE(Same(want, ReadFile(*mount / "dom1")));
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["base_format"], "raw");
  EXPECT_TRUE(Mentions(ReadFile(Log()), "is read as raw"));
  mount->Unmount();
  EXPECT_TRUE(Mentions(Refusal({"--base-format", "qcow2"}), "as raw, not as qcow2"));
  EXPECT_EQ(Refusal({"--base-format", "raw"}), "");
}

TEST_F(BaseFormats, OneThatIsNotReadIsWarnedOfOnce) {
  MakeRaw();
  Qemu("qemu-img convert -O vmdk raw.img base.img");
  EXPECT_TRUE(Mentions(Refusal(), "looks like a VMDK image"));
  EXPECT_EQ(Refusal(), "") << "the store is made";
  std::filesystem::remove_all(Store());
  EXPECT_EQ(Refusal({"--base-format", "raw"}), "") << "it is meant";
}

TEST_F(BaseFormats, BackingFilesOutsideHaveToBeAllowedOnce) {
  const Bytes content = MakeRaw();
  std::filesystem::create_directory(Scratch() / "images");
  Qemu("qemu-img create -q -f qcow2 -b ../raw.img -F raw images/top.qcow2");
  Qemu("ln -s images/top.qcow2 base.img");
  EXPECT_TRUE(Mentions(Refusal(), "outside the directory"));
  EXPECT_TRUE(Mentions(Refusal({"--allow-backing", Scratch() / "rawimg"}), "No such file"));
  EXPECT_FALSE(std::filesystem::exists(Store())) << "nothing is made";
  auto mount = MountBase({"--allow-backing", Raw()});
  Touch(*mount / "dom1");
  EXPECT_TRUE(Same(content, ReadFile(*mount / "dom1")));
  mount->Unmount();
  EXPECT_EQ(Refusal(), "") << "it is on record";
  EXPECT_EQ(Cowfs({"create", "--store", Store(), "dom2"}).err, "");
}

TEST_F(BaseFormats, ASnapshotIsShown) {
  const Bytes content = MakeRaw(4 * kMiB);
  Qemu("qemu-img convert -O qcow2 raw.img base.img; qemu-img snapshot -c clean base.img");
  Qemu("qemu-io -c 'write -P 1 0 4M' base.img");
  EXPECT_TRUE(Mentions(Refusal({"--base-snapshot", "other"}), "no snapshot 'other'"));
  auto mount = MountBase({"--base-snapshot", "clean"});
  Touch(*mount / "dom1");
  EXPECT_TRUE(Same(content, ReadFile(*mount / "dom1")));
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["base_snapshot"], "clean");
  mount->Unmount();
  EXPECT_EQ(CowfsJson({"info", Store()})["base_snapshot"], "clean");
  EXPECT_TRUE(Mentions(Refusal({"--base-snapshot", "other"}), "fixed when a store is made"));
  EXPECT_EQ(Refusal(), "");
}

TEST_F(BaseFormats, ABlockDeviceCanHoldOne) {
  const Bytes content = MakeRaw();
  Qemu("qemu-img convert -c -O qcow2 raw.img image; truncate -s 16M image");
  const LoopDevice device(Scratch() / "image", {"-r"});
  const Mount mount(device.device(), MountPoint(), {"--store", Store()});
  Touch(mount / "dom1");
  EXPECT_TRUE(Same(content, ReadFile(mount / "dom1")));
}

}  // namespace
}  // namespace cowfs::e2e
