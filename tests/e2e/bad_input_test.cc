// What cannot work is refused: one clear message that names the thing, exit status 1 (2 for usage),
// and nothing is changed.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <regex>

#include "tests/e2e/mounts.h"

#ifndef FAKE_NETWORK_FS
#define FAKE_NETWORK_FS "fake_network_fs"
#endif

namespace cowfs::e2e {
namespace {

class BadInput : public MountTest {
 protected:
  void SetUp() override {
    MountTest::SetUp();
    if (!IsSkipped()) {
      std::filesystem::create_directory(MountPoint());
      undo_ = UnmountCowfsAtEnd(MountPoint());
    }
  }

  // A store with an image in it, made by a mount and left in order.
  void MakeStore(const Arguments& arguments = {}) const {
    auto mount = MountBase(arguments);
    WriteFile(*mount / "dom1", RandomBytes(100'000, 5));
    Touch(*mount / "dom2");
    mount->Unmount();
  }

  static Arguments MountLineOf(const Path& base, const Path& directory,
                               const Arguments& arguments = {}) {
    Arguments line{"mount", base, directory};
    line.insert(line.end(), arguments.begin(), arguments.end());
    return line;
  }

  // The command fails with the status, says one thing with these words in it, and leaves everything
  // in the scratch directory as it was.
  void ExpectRefused(const Arguments& line, const std::vector<std::string>& words, int status = 1,
                     const RunOptions& options = {}) const {
    const std::string before = TreeSnapshot(Scratch());
    Arguments whole{Program()};
    whole.insert(whole.end(), line.begin(), line.end());
    ExpectRefusal(Execute(whole, options), words, status);
    EXPECT_TRUE(Same(before, TreeSnapshot(Scratch()))) << TreeSnapshot(Scratch());
  }

  static void ExpectRefusal(const Result& result, const std::vector<std::string>& words,
                            int status = 1) {
    EXPECT_EQ(result.status, status) << result.command << '\n' << result.out << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_NE(result.err, "");
    if (status == 1) {
      EXPECT_EQ(result.err.find("cowfs "), 0U) << result.err;
    }
    EXPECT_EQ(result.err.find('\x1b'), std::string::npos);
    for (const std::string& word : words) {
      EXPECT_TRUE(Mentions(result.err, word));
    }
  }

  void ExpectMountRefused(const std::vector<std::string>& words,
                          const Arguments& arguments = {}) const {
    ExpectRefused(MountLineOf(Base(), MountPoint(), arguments), words);
    EXPECT_FALSE(IsMountPoint(MountPoint()));
  }

  // Mounts and finds the images of MakeStore().
  void ExpectMountable(const Arguments& arguments = {}) const {
    auto mount = MountBase(arguments);
    EXPECT_TRUE(Holds(*mount / "dom1", RandomBytes(100'000, 5)));
    EXPECT_TRUE(Holds(*mount / "dom2", ReadFile(Base())));
    mount->Unmount();
  }

 private:
  Undo undo_;
};

TEST_F(BadInput, MissingBase) { ExpectMountRefused({Base(), "No such file"}); }

TEST_F(BadInput, EmptyBase) {
  WriteFile(Base(), "");
  ExpectMountRefused({Base(), "empty"});
}

TEST_F(BadInput, DirectoryAsBase) {
  std::filesystem::create_directory(Base());
  ExpectMountRefused({Base(), "directory"});
}

TEST_F(BadInput, BaseThatIsNeitherFileNorBlockDevice) {
  ASSERT_EQ(mkfifo(Base().c_str(), 0644), 0);
  const Result result =
      Cowfs(MountLineOf(Base(), MountPoint()), {.timeout = std::chrono::seconds(20)});
  EXPECT_FALSE(result.timed_out);
  ExpectRefusal(result, {Base()});
  ExpectRefused(MountLineOf("/dev/null", MountPoint(), {"--store", Store()}), {"/dev/null"});
}

TEST_F(BadInput, UnreadableBase) {
  MakeBase();
  ASSERT_EQ(chmod(Base().c_str(), 0600), 0);
  std::filesystem::copy_file(Program(), Scratch() / "cowfs");
  const Path theirs = Scratch() / "theirs";
  std::filesystem::create_directories(theirs / "vms");
  Must(Execute({"chown", "-R", "65534:65534", theirs.string()}));
  const std::string before = TreeSnapshot(Scratch());
  const Result result =
      Execute({Scratch() / "cowfs", "mount", Base(), theirs / "vms", "--store", theirs / "store"},
              {.as_nobody = true});
  ExpectRefusal(result, {Base(), "Permission denied"});
  EXPECT_EQ(TreeSnapshot(Scratch()), before);
}

TEST_F(BadInput, BaseInsideTheMountPoint) {
  const Path inside = MountPoint() / "base.img";
  WriteFile(inside, RandomBytes(kMiB, 1));
  ExpectRefused(MountLineOf(inside, MountPoint()), {inside, MountPoint()});
  ExpectRefused(MountLineOf(inside, MountPoint(), {"--store", Scratch() / "store"}),
                {inside, MountPoint()});
  ExpectRefused(MountLineOf(inside, Scratch(), {"--store", Scratch() / "store"}), {inside});
}

TEST_F(BadInput, StoreInsideTheMountPoint) {
  MakeBase();
  ExpectMountRefused({(MountPoint() / "store").string()}, {"--store", MountPoint() / "store"});
}

TEST_F(BadInput, MissingMountPoint) {
  MakeBase();
  ExpectRefused(MountLineOf(Base(), Scratch() / "none"), {(Scratch() / "none").string()});
}

TEST_F(BadInput, MountPointThatIsNoDirectory) {
  MakeBase();
  WriteFile(Scratch() / "file", "x");
  ExpectRefused(MountLineOf(Base(), Scratch() / "file"),
                {(Scratch() / "file").string(), "directory"});
}

TEST_F(BadInput, MountPointThatIsAMountAlready) {
  MakeBase();
  WriteFile(Scratch() / "other.img", RandomBytes(kMiB, 2));
  auto mount = MountBase();
  const Result result = Cowfs(MountLineOf(Scratch() / "other.img", MountPoint()));
  ExpectRefusal(result, {MountPoint(), "mount"});
  EXPECT_FALSE(std::filesystem::exists(Scratch() / "other.img.cowfs"));
  Touch(*mount / "dom1");
  EXPECT_TRUE(Holds(*mount / "dom1", ReadFile(Base())));
}

TEST_F(BadInput, StoreThatIsInUseNamesItsUser) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  std::filesystem::create_directory(Scratch() / "second");
  const Undo undo = UnmountCowfsAtEnd(Scratch() / "second");
  const Result result = Cowfs(MountLineOf(Base(), Scratch() / "second"));
  ExpectRefusal(result, {Store(), std::to_string(mount->server())});
  EXPECT_TRUE(Mentions(result.err, MountPoint()));
  EXPECT_FALSE(IsMountPoint(Scratch() / "second"));
  EXPECT_TRUE(Holds(*mount / "dom1", ReadFile(Base())));
}

TEST_F(BadInput, StoreOfAnotherBase) {
  MakeBase();
  MakeStore();
  WriteFile(Scratch() / "other.img", RandomBytes(8 * kMiB, 9));
  ExpectRefused(MountLineOf(Scratch() / "other.img", MountPoint(), {"--store", Store()}),
                {Store(), (Scratch() / "other.img").string()});
  ExpectMountable();
}

TEST_F(BadInput, StoreWithAnotherChunkSize) {
  MakeBase();
  MakeStore({"--chunk-size", "64K"});
  ExpectMountRefused({Store(), "65536"}, {"--chunk-size", "4K"});
  ExpectMountable({"--chunk-size", "64K"});
  ExpectMountable();  // not asked for: what the store has
}

TEST_F(BadInput, UnfitChunkSizes) {
  MakeBase();
  for (const std::string size : {"0", "3000", "5K", "2K", "4M", "-4K", "big", "", "1e6"}) {
    const std::string before = TreeSnapshot(Scratch());
    const Result result = Cowfs(MountLineOf(Base(), MountPoint(), {"--chunk-size=" + size}));
    EXPECT_EQ(result.status, 2) << size;
    EXPECT_TRUE(Mentions(result.err, size));
    EXPECT_EQ(TreeSnapshot(Scratch()), before) << size;
  }
}

TEST_F(BadInput, FitChunkSizesInEveryNotation) {
  MakeBase(kMiB);
  for (const auto& [text, size] : std::vector<std::pair<std::string, uint64_t>>{
           {"4096", 4096}, {"8k", 8192}, {"16KiB", 16'384}, {"1M", kMiB}, {"2M", 2 * kMiB}}) {
    auto mount = MountBase({"--chunk-size", text});
    EXPECT_EQ(CowfsJson({"info", MountPoint()})["chunk_size"], size) << text;
    mount->Unmount();
    std::filesystem::remove_all(Store());
  }
}

TEST_F(BadInput, StoreOnAReadOnlyFileSystem) {
  MakeBase();
  const HostFileSystem host(Scratch(), "ext4", 64 * kMiB);
  WriteFile(host.path() / "base.img", RandomBytes(kMiB, 1));
  Must(Execute({"mount", "-o", "remount,ro", host.path().string()}));
  ExpectRefused(MountLineOf(host.path() / "base.img", MountPoint()),
                {(host.path() / "base.img.cowfs").string(), "read-only"});
  ExpectMountRefused({(host.path() / "store").string(), "read-only"},
                     {"--store", host.path() / "store"});
}

TEST_F(BadInput, ExistingStoreOnAReadOnlyFileSystem) {
  const HostFileSystem host(Scratch(), "ext4", 64 * kMiB);
  const Path base = host.path() / "base.img";
  WriteFile(base, RandomBytes(kMiB, 1));
  const Path store = host.path() / "base.img.cowfs";
  {
    const Mount mount(base, MountPoint());
    Touch(mount / "dom1");
  }
  Must(Execute({"mount", "-o", "remount,ro", host.path().string()}));
  ExpectRefused(MountLineOf(base, MountPoint()), {store.string(), "read-only"});
  ExpectRefused({"rm", "dom1", "--store", store}, {store.string(), "read-only"});
  // It can be looked at.
  EXPECT_EQ(CowfsJson({"ls", "--store", store}).size(), 1U);
  EXPECT_EQ(CowfsJson({"info", store})["images"], 1);
}

TEST_F(BadInput, StoreThatIsNotWritable) {
  MakeBase();
  std::filesystem::copy_file(Program(), Scratch() / "cowfs");
  std::filesystem::create_directory(Scratch() / "theirs");
  ASSERT_EQ(chown((Scratch() / "theirs").c_str(), 65534, 65534), 0);
  const std::string before = TreeSnapshot(Scratch());
  const Result result =
      Execute({Scratch() / "cowfs", "mount", Base(), Scratch() / "theirs"}, {.as_nobody = true});
  ExpectRefusal(result, {Store(), "Permission denied"});
  EXPECT_EQ(TreeSnapshot(Scratch()), before);
}

TEST_F(BadInput, StoreOnANetworkFileSystem) {
  const Path share = Scratch() / "share";
  std::filesystem::create_directory(share);
  const Undo undo([share] { Execute({"umount", "-l", share.string()}); });
  const Background file_system({FAKE_NETWORK_FS, share}, "/dev/null", Scratch() / "err");
  ASSERT_TRUE(Eventually([&] { return IsMountPoint(share); })) << ReadFile(Scratch() / "err");
  MakeBase();
  ExpectMountRefused({(share / "store").string(), "network", "sshfs"},
                     {"--store", share / "store"});
}

TEST_F(BadInput, StoreThatIsNoDirectory) {
  MakeBase();
  WriteFile(Store(), "a file");
  ExpectMountRefused({Store(), "directory"});
}

TEST_F(BadInput, DirectoryThatIsNoStore) {
  MakeBase();
  std::filesystem::create_directory(Store());
  WriteFile(Store() / "precious", "do not touch");
  ExpectMountRefused({Store()});
}

TEST_F(BadInput, CatalogThatIsNoDatabase) {
  MakeBase();
  MakeStore();
  WriteFile(Store() / "catalog.db", "this is not what you are looking for\n");
  ExpectMountRefused({(Store() / "catalog.db").string()});
}

TEST_F(BadInput, CatalogThatIsAnotherDatabase) {
  MakeBase();
  MakeStore();
  File catalog(Store() / "catalog.db");
  catalog.Write(68, "\x01\x02\x03\x04");  // SQLite's application_id
  catalog.Close();
  ExpectMountRefused({(Store() / "catalog.db").string()});
}

TEST_F(BadInput, CatalogThatIsEmpty) {
  MakeBase();
  MakeStore();
  WriteFile(Store() / "catalog.db", "");
  ExpectMountRefused({Store()});
}

TEST_F(BadInput, CatalogThatIsTruncated) {
  MakeBase();
  MakeStore();
  const Bytes whole = ReadFile(Store() / "catalog.db");
  for (const uint64_t size : {uint64_t{50}, uint64_t{4096}, uint64_t{5000}, whole.size() / 2 + 7}) {
    SCOPED_TRACE(size);
    WriteFile(Store() / "catalog.db", whole.substr(0, size));
    ExpectMountRefused({(Store() / "catalog.db").string()});
  }
  WriteFile(Store() / "catalog.db", whole);
  ExpectMountable();
}

TEST_F(BadInput, CatalogThatIsMissing) {
  MakeBase();
  MakeStore();
  std::filesystem::remove(Store() / "catalog.db");
  ExpectMountRefused({Store()});
}

TEST_F(BadInput, StoreOfANewerFormat) {
  MakeBase();
  MakeStore();
  const Bytes whole = ReadFile(Store() / "catalog.db");
  File(Store() / "catalog.db").Write(60, Bytes("\0\0\x23\x28", 4));  // user_version 9000
  ExpectMountRefused({Store(), "9000"});
  WriteFile(Store() / "catalog.db", whole);
  ExpectMountable();
}

TEST_F(BadInput, CowFileThatIsMissing) {
  MakeBase();
  MakeStore();
  Path cow_file;
  for (const auto& file : std::filesystem::directory_iterator(Store() / "layers")) {
    cow_file = file.path();
  }
  const Bytes content = ReadFile(cow_file);
  std::filesystem::remove(cow_file);
  ExpectMountRefused({cow_file, "`cowfs check " + Store().string() + "`"});
  ExpectRefused({"create", "x", "--store", Store()}, {cow_file, "cowfs check"});
  WriteFile(cow_file, content);
  ExpectMountable();
}

TEST_F(BadInput, CommandsOnABrokenStore) {
  MakeBase();
  MakeStore();
  WriteFile(Store() / "catalog.db", "this is not what you are looking for\n");
  for (const Arguments& line : {Arguments{"ls", "--store", Store()}, Arguments{"info", Store()},
                                Arguments{"create", "x", "--store", Store()},
                                Arguments{"rm", "dom1", "--store", Store()}}) {
    ExpectRefused(line, {Store()});
  }
  ExpectRefused({"ls", "--store", Scratch() / "none"}, {(Scratch() / "none").string()});
  ExpectRefused({"create", "x", "--store", Scratch() / "none"}, {(Scratch() / "none").string()});
}

TEST_F(BadInput, NoTemporaryDirectory) {
  MakeBase();
  MakeStore();
  const Result result = Cowfs({"check", Store()}, {.environment = "TMPDIR=/none"});
  ExpectRefusal(result, {"temporary directory", "/none", "TMPDIR"});
}

TEST_F(BadInput, MountInPlaceOfAnImage) {
  MakeBase();
  const auto mount = MountBase();
  Touch(*mount / "dom1");
  for (const Arguments& line :
       {Arguments{"limit", MountPoint(), "1M"}, Arguments{"resize", MountPoint(), "1M"},
        Arguments{"rm", MountPoint()}, Arguments{"create", MountPoint()}}) {
    ExpectRefusal(Cowfs(line), {MountPoint().string() + ": is a mount; name an image in it"});
  }
}

TEST_F(BadInput, NoFuseDevice) {
  MakeBase();
  const std::string before = TreeSnapshot(Scratch());
  const Result result = Execute(
      {"unshare", "-m", "sh", "-euc",
       "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; exec \"$0\" mount \"$1\" \"$2\"",
       Program(), Base(), MountPoint()});
  ExpectRefusal(result, {"/dev/fuse"});
  EXPECT_EQ(TreeSnapshot(Scratch()), before);
}

TEST_F(BadInput, NoRightToMount) {
  std::filesystem::copy_file(Program(), Scratch() / "cowfs");
  const Path home = Scratch() / "home";
  std::filesystem::create_directories(home / "vms");
  WriteFile(home / "base.img", RandomBytes(kMiB, 1));
  Must(Execute({"chown", "-R", "65534:65534", home.string()}));
  const std::string before = TreeSnapshot(Scratch());
  const Result result =
      Execute({Scratch() / "cowfs", "mount", home / "base.img", home / "vms"}, {.as_nobody = true});
  ExpectRefusal(result, {});
  EXPECT_TRUE(std::regex_search(result.err, std::regex("permi|right|allowed", std::regex::icase)))
      << result.err;
  EXPECT_EQ(TreeSnapshot(Scratch()), before);
}

TEST_F(BadInput, UnknownMountOptions) {
  MakeBase();
  for (const std::string option :
       {"nonsense", "cache=sometimes", "uid=many", "umask=9", "watermarks=80:"}) {
    const std::string before = TreeSnapshot(Scratch());
    const Result result = Cowfs(MountLineOf(Base(), MountPoint(), {"-o", option}));
    EXPECT_EQ(result.status, 2) << option;
    EXPECT_TRUE(Mentions(result.err, "'" + option + "'"));
    EXPECT_FALSE(IsMountPoint(MountPoint()));
    EXPECT_EQ(TreeSnapshot(Scratch()), before) << option;
  }
}

TEST_F(BadInput, UnknownPolicy) {
  MakeBase();
  const Result result = Cowfs(MountLineOf(Base(), MountPoint(), {"--policy", "dense"}));
  EXPECT_EQ(result.status, 2);
  EXPECT_TRUE(Mentions(result.err, "dense"));
  EXPECT_FALSE(std::filesystem::exists(Store()));
}

TEST_F(BadInput, LogFileThatCannotBeOpened) {
  MakeBase();
  ExpectMountRefused({"/none/cowfs.log"}, {"--log-file", "/none/cowfs.log"});
}

TEST_F(BadInput, UsageErrorsHaveAStatusOfTheirOwn) {
  for (const Arguments& line : std::vector<Arguments>{{},
                                                      {"nonsense"},
                                                      {"--nonsense"},
                                                      {"mount"},
                                                      {"mount", "only-one"},
                                                      {"mount", "a", "b", "c"},
                                                      {"mount", "a", "b", "--nonsense"},
                                                      {"mount", "a", "b", "--log-level", "loud"},
                                                      {"umount"},
                                                      {"sync"},
                                                      {"create"},
                                                      {"rm"},
                                                      {"mv", "one"},
                                                      {"resize", "one"},
                                                      {"resize", "one", "big"},
                                                      {"resize", "one", "-1"},
                                                      {"resize", "one", "2P"},
                                                      {"limit", "one", "abc"},
                                                      {"limit", "one", "-1"},
                                                      {"create", "--size", "abc", "one"},
                                                      {"create", "--size", "2P", "one"},
                                                      {"create", "--mode", "999", "one"},
                                                      {"create", "--owner", "", "one"},
                                                      {"mount", "a", "b", "--chunk-size", "3K"},
                                                      {"mount", "a", "b", "--policy", "dense"},
                                                      {"mount", "a", "b", "-o", "uid=x"}}) {
    const Result result = Cowfs(line);
    EXPECT_EQ(result.status, 2) << result.command << ": " << result.err;
    EXPECT_NE(result.err, "") << result.command;
  }
}

// I1: what a base may go through, and what it may not.
class ChangedBase : public BadInput {
 protected:
  static void SetTime(const Path& path, const timespec& modified) {
    const timespec times[2] = {{0, UTIME_OMIT}, modified};
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  }
  void ChangeOneByte(uint64_t offset) const {
    const File base(Base());
    const Bytes old = base.Read(offset, 1);
    base.Write(offset, old == "A" ? "B" : "A");
    base.Sync();
  }
};

TEST_F(ChangedBase, UnchangedIsAcceptedAtOnce) {
  MakeBase();
  MakeStore();
  ExpectMountable();
}

TEST_F(ChangedBase, OtherContentIsRefused) {
  MakeBase();
  MakeStore();
  ChangeOneByte(100);
  ExpectMountRefused({Base(), "changed"});
}

TEST_F(ChangedBase, OtherContentWithTheOldTimeIsRefused) {
  MakeBase();
  MakeStore();
  const timespec modified = StatOf(Base()).st_mtim;
  ChangeOneByte(8 * kMiB - 5);
  SetTime(Base(), modified);
  ExpectMountRefused({Base()});
}

TEST_F(ChangedBase, AnotherSizeIsRefused) {
  MakeBase();
  MakeStore();
  const timespec modified = StatOf(Base()).st_mtim;
  File(Base()).Write(8 * kMiB, "one more");
  SetTime(Base(), modified);
  ExpectMountRefused({Base()});
}

TEST_F(ChangedBase, ACarefulCopyIsAcceptedWithALogLine) {
  MakeBase();
  MakeStore();
  Must(Shell("cp -p base.img copy.img && mv copy.img base.img", {.directory = Scratch()}));
  const Path log = Scratch() / "log";
  ExpectMountable({"--log-file", log});
  EXPECT_TRUE(Mentions(ReadFile(log), Base()));
  // From now on this is the base that is known.
  WriteFile(log, "");
  ExpectMountable({"--log-file", log});
}

TEST_F(ChangedBase, SameContentWithAnotherTimeIsRefusedAndNamesTheWaysOn) {
  MakeBase();
  MakeStore();
  Touch(Base());
  ExpectMountRefused({Base(), "--accept-changed-base"});
}

TEST_F(ChangedBase, MayBeAccepted) {
  MakeBase();
  MakeStore();
  Touch(Base());
  ExpectMountRefused({"--accept-changed-base"});
  ExpectMountable({"--accept-changed-base"});
  ExpectMountable();
}

}  // namespace
}  // namespace cowfs::e2e
