// The directory of a mount: names, attributes, what is kept and what is refused.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <set>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class Directory : public MountTest {
 protected:
  static std::set<std::string> Names(const Path& directory) {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      names.insert(entry.path().filename().string());
    }
    return names;
  }
  static int Rename(const Path& from, const Path& to, unsigned flags = 0) {
    return renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags);
  }
};

TEST_F(Directory, ListsExactlyTheImages) {
  MakeBase();
  auto mount = MountBase();
  EXPECT_EQ(Names(MountPoint()), std::set<std::string>{});
  Touch(*mount / "dom1.img");
  WriteFile(*mount / "with space", "x");
  Touch(*mount / "ümläut");
  const std::set<std::string> names{"dom1.img", "with space", "ümläut"};
  EXPECT_EQ(Names(MountPoint()), names);
  mount->Remount();
  EXPECT_EQ(Names(MountPoint()), names);
}

TEST_F(Directory, RenameReplacesAndLasts) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "a");
  WriteFile(*mount / "b", "bee");
  WriteFile(*mount / "c", "sea");
  EXPECT_EQ(Rename(*mount / "a", *mount / "new"), 0);
  EXPECT_EQ(Rename(*mount / "b", *mount / "c"), 0);
  EXPECT_EQ(Rename(*mount / "none", *mount / "d"), -1);
  EXPECT_EQ(errno, ENOENT);
  EXPECT_EQ(Rename(*mount / "c", *mount / "c"), 0);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(Names(MountPoint()), (std::set<std::string>{"new", "c"}));
    EXPECT_TRUE(Holds(*mount / "new", base));
    EXPECT_EQ(ReadFile(*mount / "c"), "bee");
    mount->Remount();
  }
}

TEST_F(Directory, RenameIsDurableWhenItReturns) {
  MakeBase();
  auto mount = MountBase();
  WriteFile(*mount / "a", "new");
  WriteFile(*mount / "b", "old");
  EXPECT_EQ(Rename(*mount / "a", *mount / "b"), 0);
  Touch(*mount / "made");
  ASSERT_EQ(chmod((*mount / "made").c_str(), 0640), 0);
  mount->Kill();
  Must(Cowfs({"umount", MountPoint()}));
  mount->MountAgain();
  EXPECT_EQ(Names(MountPoint()), (std::set<std::string>{"b", "made"}));
  EXPECT_EQ(ReadFile(*mount / "b"), "new");
  EXPECT_EQ(StatOf(*mount / "made").st_mode & 07777U, 0640U);
}

TEST_F(Directory, RenameOverAnOpenImageLeavesItToItsOpener) {
  MakeBase();
  auto mount = MountBase();
  WriteFile(*mount / "a", "new");
  WriteFile(*mount / "b", "old");
  const File old(*mount / "b");
  const File moved(*mount / "a");
  EXPECT_EQ(Rename(*mount / "a", *mount / "b"), 0);
  EXPECT_EQ(old.ReadAll(), "old");
  old.Write(3, "er");
  EXPECT_EQ(old.ReadAll(), "older");
  moved.Write(3, "est");
  EXPECT_EQ(ReadFile(*mount / "b"), "newest");
}

TEST_F(Directory, RenameNoReplaceRefusesWhatExists) {
  MakeBase();
  auto mount = MountBase();
  WriteFile(*mount / "a", "a");
  WriteFile(*mount / "b", "b");
  EXPECT_EQ(Rename(*mount / "a", *mount / "b", RENAME_NOREPLACE), -1);
  EXPECT_EQ(errno, EEXIST);
  EXPECT_EQ(Rename(*mount / "a", *mount / "c", RENAME_NOREPLACE), 0);
  EXPECT_EQ(Names(MountPoint()), (std::set<std::string>{"b", "c"}));
}

TEST_F(Directory, RenameExchangeSwapsTwoImages) {
  MakeBase();
  auto mount = MountBase();
  WriteFile(*mount / "a", "a");
  WriteFile(*mount / "b", "bb");
  const ino_t first = StatOf(*mount / "a").st_ino;
  const ino_t second = StatOf(*mount / "b").st_ino;
  EXPECT_EQ(Rename(*mount / "a", *mount / "b", RENAME_EXCHANGE), 0);
  EXPECT_EQ(Rename(*mount / "a", *mount / "none", RENAME_EXCHANGE), -1);
  EXPECT_EQ(errno, ENOENT);
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(ReadFile(*mount / "a"), "bb");
    EXPECT_EQ(ReadFile(*mount / "b"), "a");
    EXPECT_EQ(StatOf(*mount / "a").st_ino, second);
    EXPECT_EQ(StatOf(*mount / "b").st_ino, first);
    mount->Remount();
  }
}

TEST_F(Directory, ModeOwnerAndTimesLast) {
  MakeBase();
  auto mount = MountBase();
  const Path image = *mount / "dom1";
  Touch(image);
  ASSERT_EQ(chmod(image.c_str(), 0741), 0);
  ASSERT_EQ(chown(image.c_str(), 1234, 5678), 0);
  const timespec times[2] = {{1'000'000'001, 123'456'789}, {1'234'567'890, 987'654'321}};
  ASSERT_EQ(utimensat(AT_FDCWD, image.c_str(), times, 0), 0);
  for (int round = 0; round < 2; ++round) {
    const struct stat status = StatOf(image);
    EXPECT_EQ(status.st_mode, S_IFREG | 0741U);
    EXPECT_EQ(status.st_uid, 1234U);
    EXPECT_EQ(status.st_gid, 5678U);
    EXPECT_EQ(status.st_mtim.tv_sec, 1'234'567'890);
    EXPECT_EQ(status.st_mtim.tv_nsec, 987'654'321);
    EXPECT_EQ(status.st_nlink, 1U);
    mount->Remount();
  }
}

TEST_F(Directory, OnlyPermissionBitsAreKept) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  chmod((*mount / "dom1").c_str(), 07755);
  EXPECT_EQ(StatOf(*mount / "dom1").st_mode & 07777U, 0755U);
}

TEST_F(Directory, TimeOfAWriteIsKept) {
  MakeBase();
  auto mount = MountBase();
  const Path image = *mount / "dom1";
  Touch(image);
  const timespec old[2] = {{1'000'000'000, 0}, {1'000'000'000, 0}};
  ASSERT_EQ(utimensat(AT_FDCWD, image.c_str(), old, 0), 0);
  File(image).Write(0, "x");
  const timespec after_write = StatOf(image).st_mtim;
  EXPECT_GT(after_write.tv_sec, 1'700'000'000);
  mount->Remount();
  EXPECT_EQ(StatOf(image).st_mtim.tv_sec, after_write.tv_sec);
  EXPECT_EQ(StatOf(image).st_mtim.tv_nsec, after_write.tv_nsec);
}

TEST_F(Directory, CreateHonoursModeAndUmask) {
  MakeBase();
  auto mount = MountBase();
  Must(Shell("umask 027; touch " + Quoted(*mount / "a") + "; umask 077; : > " +
             Quoted(*mount / "b")));
  EXPECT_EQ(StatOf(*mount / "a").st_mode & 07777U, 0640U);
  EXPECT_EQ(StatOf(*mount / "b").st_mode & 07777U, 0600U);
}

TEST_F(Directory, PermissionsAreChecked) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "secret");
  ASSERT_EQ(chmod((*mount / "secret").c_str(), 0600), 0);
  Touch(*mount / "open");
  ASSERT_EQ(chmod((*mount / "open").c_str(), 0644), 0);
  const RunOptions nobody{.as_nobody = true};
  EXPECT_NE(Execute({"cat", (*mount / "secret").string()}, nobody).status, 0);
  EXPECT_EQ(Execute({"head", "-c1", (*mount / "open").string()}, nobody).status, 0);
  EXPECT_NE(Shell("printf x >> " + Quoted(*mount / "open"), nobody).status, 0);
  EXPECT_NE(Execute({"rm", "-f", (*mount / "open").string()}, nobody).status, 0);
  EXPECT_TRUE(std::filesystem::exists(*mount / "open"));
}

TEST_F(Directory, CommandsAskForWritePermissionOnTheImage) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "readable");
  ASSERT_EQ(chmod((*mount / "readable").c_str(), 0644), 0);
  // Reachable for nobody wherever the program under test lies.
  std::filesystem::copy_file(Program(), Scratch() / "cowfs");
  const Result result =
      Execute({(Scratch() / "cowfs").string(), "resize", (*mount / "readable").string(), "1G"},
              {.as_nobody = true});
  EXPECT_EQ(result.status, 1);
  EXPECT_TRUE(Mentions(result.err, "readable"));
  EXPECT_EQ(StatOf(*mount / "readable").st_size, base.size());
}

TEST_F(Directory, InodeNumbersAreUniqueAndLast) {
  MakeBase();
  auto mount = MountBase();
  std::set<ino_t> numbers{StatOf(MountPoint()).st_ino};
  std::vector<ino_t> in_order;
  for (int i = 0; i < 20; ++i) {
    const Path image = *mount / ("dom" + std::to_string(i));
    Touch(image);
    in_order.push_back(StatOf(image).st_ino);
    EXPECT_TRUE(numbers.insert(in_order.back()).second);
  }
  std::filesystem::remove(*mount / "dom7");
  mount->Remount();
  Touch(*mount / "late");
  EXPECT_TRUE(numbers.insert(StatOf(*mount / "late").st_ino).second) << "a number came again";
  for (size_t i = 0; i < in_order.size(); ++i) {
    if (i != 7) {
      EXPECT_EQ(StatOf(*mount / ("dom" + std::to_string(i))).st_ino, in_order[i]);
      EXPECT_EQ(CowfsJson({"info", *mount / ("dom" + std::to_string(i))})["inode"], in_order[i]);
    }
  }
  // What readdir tells is what stat tells.
  const std::string listed = Must(Execute({"ls", "-i", MountPoint().string()}));
  EXPECT_TRUE(Mentions(listed, std::to_string(in_order[3]) + " dom3\n"));
}

TEST_F(Directory, TenThousandImagesAreListed) {
  MakeBase(kMiB);
  // Each is durable when it is made: in memory that takes seconds, on a disk more than a minute.
  const HostFileSystem memory(Scratch(), "tmpfs", 512 * kMiB);
  auto mount = MountBase({"--store", memory.path() / "store"});
  std::set<std::string> expected;
  Arguments command{"create"};
  for (int i = 0; i < 10'000; ++i) {
    expected.insert("machine-" + std::to_string(i) + ".img");
    command.push_back(*mount / ("machine-" + std::to_string(i) + ".img"));
  }
  Must(Cowfs(command, {.timeout = std::chrono::seconds(120)}));
  EXPECT_EQ(Names(MountPoint()), expected);
  mount->Remount();
  EXPECT_EQ(Names(MountPoint()), expected);
  EXPECT_EQ(CowfsJson({"ls", MountPoint()}).size(), 10'000U);
  // Removing while reading loses nothing that stays.
  size_t removed = 0;
  for (const auto& entry : std::filesystem::directory_iterator(MountPoint())) {
    if (removed < 50) {
      std::filesystem::remove(entry.path());
      expected.erase(entry.path().filename().string());
      ++removed;
    }
  }
  EXPECT_EQ(Names(MountPoint()), expected);
}

TEST_F(Directory, StatfsTellsTheChunkSizeAndTheCowSpace) {
  MakeBase();
  for (const uint64_t chunk : {4 * kKiB, 64 * kKiB, 2 * kMiB}) {
    auto mount = MountBase({"--chunk-size", std::to_string(chunk), "--store",
                            Scratch() / ("store" + std::to_string(chunk))});
    struct statvfs cow {};
    struct statvfs host {};
    ASSERT_EQ(statvfs(MountPoint().c_str(), &cow), 0);
    ASSERT_EQ(statvfs(Scratch().c_str(), &host), 0);
    EXPECT_EQ(cow.f_bsize, chunk);
    EXPECT_EQ(cow.f_frsize, 4096U);
    const uint64_t total = cow.f_blocks * cow.f_frsize;
    EXPECT_NEAR(static_cast<double>(total), static_cast<double>(host.f_blocks * host.f_frsize),
                static_cast<double>(kMiB));
    EXPECT_NEAR(static_cast<double>(cow.f_bavail * cow.f_frsize),
                static_cast<double>(host.f_bavail * host.f_frsize), static_cast<double>(kGiB));
    EXPECT_LE(cow.f_bavail, cow.f_blocks);
    Touch(*mount / "dom1");
    struct statvfs file {};
    ASSERT_EQ(statvfs((*mount / "dom1").c_str(), &file), 0);
    EXPECT_EQ(file.f_bsize, chunk);
  }
}

TEST_F(Directory, DfCountsTheImages) {
  MakeBase();
  auto mount = MountBase();
  const auto used = [&] {
    return Must(Shell("df --output=iused " + Quoted(MountPoint()) + " | tail -n1 | tr -d ' '"));
  };
  EXPECT_EQ(used(), "0\n");
  for (const char* const name : {"dom1", "dom2", "dom3"}) {
    Touch(*mount / name);
  }
  EXPECT_EQ(used(), "3\n");
  std::filesystem::remove(*mount / "dom2");
  EXPECT_EQ(used(), "2\n");
}

TEST_F(Directory, StatfsTellsOfTheStoresFileSystemNotTheBases) {
  MakeBase();
  const HostFileSystem host(Scratch(), "tmpfs", 64 * kMiB);
  auto mount = MountBase({"--store", host.path() / "store"});
  const auto figures = [&] {
    struct statvfs cow {};
    EXPECT_EQ(statvfs(MountPoint().c_str(), &cow), 0);
    return cow;
  };
  EXPECT_EQ(figures().f_blocks * figures().f_frsize, 64 * kMiB);
  const uint64_t before = figures().f_bavail * 4096;
  WriteFile(*mount / "dom1", RandomBytes(16 * kMiB, 1));
  const uint64_t after = figures().f_bavail * 4096;
  EXPECT_GE(before - after, 16 * kMiB);
  EXPECT_LT(before - after, 20 * kMiB);
  EXPECT_EQ(CowfsJson({"info", MountPoint()})["total_bytes"], 64 * kMiB);
}

TEST_F(Directory, AttributesTellFactsAndTakeNone) {
  MakeBase();
  auto mount = MountBase({"--chunk-size", "64K"});
  const Path image = *mount / "dom1";
  Touch(image);
  const auto get = [](const Path& path, const std::string& name) {
    char value[4096];
    const ssize_t length = getxattr(path.c_str(), name.c_str(), value, sizeof(value));
    return length < 0 ? "errno " + std::to_string(errno)
                      : std::string(value, static_cast<size_t>(length));
  };
  EXPECT_EQ(get(image, "user.cowfs.own_bytes"), "0");
  EXPECT_EQ(get(image, "user.cowfs.chunk_size"), "65536");
  EXPECT_EQ(get(image, "user.cowfs.base"), Base().string());
  EXPECT_EQ(get(MountPoint(), "user.cowfs.chunk_size"), "65536");
  EXPECT_EQ(get(MountPoint(), "user.cowfs.base"), Base().string());
  EXPECT_EQ(get(image, "user.other"), "errno " + std::to_string(ENODATA));
  EXPECT_EQ(get(image, "user.cowfs.none"), "errno " + std::to_string(ENODATA));
  const std::string all =
      Must(Execute({"getfattr", "--absolute-names", "-d", "-m", "-", image.string()}));
  for (const char* const name : {"own_bytes", "chunk_size", "base"}) {
    EXPECT_TRUE(Mentions(all, std::string("user.cowfs.") + name + "="));
  }
  char one;
  EXPECT_EQ(getxattr(image.c_str(), "user.cowfs.base", &one, 1), -1);
  EXPECT_EQ(errno, ERANGE);
  EXPECT_EQ(listxattr(image.c_str(), &one, 1), -1);
  EXPECT_EQ(errno, ERANGE);

  EXPECT_EQ(setxattr(image.c_str(), "user.cowfs.base", "x", 1, 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(removexattr(image.c_str(), "user.cowfs.base"), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(setxattr(image.c_str(), "user.other", "x", 1, 0), -1);
  EXPECT_EQ(errno, ENOTSUP);
  EXPECT_EQ(setxattr(image.c_str(), "security.other", "x", 1, 0), -1);
  EXPECT_EQ(errno, ENOTSUP);
}

TEST_F(Directory, OnlyRegularFilesCanBeMade) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const auto refused = [](int result) { return result == -1 && errno == EPERM; };
  EXPECT_TRUE(refused(mkdir((*mount / "dir").c_str(), 0755)));
  EXPECT_TRUE(refused(mknod((*mount / "fifo").c_str(), S_IFIFO | 0644, 0)));
  EXPECT_TRUE(refused(mknod((*mount / "socket").c_str(), S_IFSOCK | 0644, 0)));
  EXPECT_TRUE(refused(mknod((*mount / "block").c_str(), S_IFBLK | 0644, 0x0700)));
  EXPECT_TRUE(refused(mknod((*mount / "char").c_str(), S_IFCHR | 0644, 0x0103)));
  EXPECT_TRUE(refused(symlink("dom1", (*mount / "symlink").c_str())));
  EXPECT_TRUE(refused(link((*mount / "dom1").c_str(), (*mount / "link").c_str())));
  EXPECT_EQ(Names(MountPoint()), std::set<std::string>{"dom1"});
}

TEST_F(Directory, ReservedAndUnfitNamesAreInvalid) {
  MakeBase();
  auto mount = MountBase();
  Touch(*mount / "dom1");
  const std::vector<std::string> unfit{std::string(201, 'n'), "dom1@clean",    "@",
                                       "new\nline",           "\x1b[31mred",   "tab\there",
                                       "delete\x7f",          ".cowfs",        ".cowfs-stats",
                                       ".snapshots",          ".snapshots.old"};
  const auto invalid = [](int result) { return result == -1 && errno == EINVAL; };
  for (const std::string& name : unfit) {
    SCOPED_TRACE(name);
    EXPECT_TRUE(invalid(open((*mount / name).c_str(), O_RDWR | O_CREAT, 0644))) << errno;
    EXPECT_TRUE(invalid(open((*mount / name).c_str(), O_RDWR | O_CREAT | O_EXCL, 0644))) << errno;
    EXPECT_TRUE(invalid(mknod((*mount / name).c_str(), S_IFREG | 0644, 0))) << errno;
    EXPECT_TRUE(invalid(Rename(*mount / "dom1", *mount / name))) << errno;
    struct stat status {};
    EXPECT_NE(stat((*mount / name).c_str(), &status), 0);
  }
  EXPECT_EQ(Names(MountPoint()), std::set<std::string>{"dom1"});
}

TEST_F(Directory, UnusualNamesThatAreFitWork) {
  MakeBase();
  auto mount = MountBase();
  const std::set<std::string> fit{
      std::string(200, 'n'), "-rf", "a b",      "ü",      ".hidden",     "..x",
      "cowfs.img",           "%s",  "'quoted'", "\\back", "x.snapshots", "~"};
  for (const std::string& name : fit) {
    WriteFile(*mount / name, name);
  }
  mount->Remount();
  EXPECT_EQ(Names(MountPoint()), fit);
  for (const std::string& name : fit) {
    EXPECT_EQ(ReadFile(*mount / name), name);
    EXPECT_EQ(CowfsJson({"info", *mount / name})["name"], name);
  }
  std::set<std::string> listed;
  for (const Json& image : CowfsJson({"ls", MountPoint()})) {
    listed.insert(image["name"].get<std::string>());
  }
  EXPECT_EQ(listed, fit);
}

TEST_F(Directory, RootIsADirectoryThatCannotBeRemovedOrRenamed) {
  MakeBase();
  auto mount = MountBase();
  EXPECT_TRUE(S_ISDIR(StatOf(MountPoint()).st_mode));
  EXPECT_EQ(rmdir((*mount / "none").c_str()), -1);
  EXPECT_EQ(errno, ENOENT);
  Touch(*mount / "dom1");
  EXPECT_EQ(rmdir((*mount / "dom1").c_str()), -1);
  EXPECT_EQ(errno, ENOTDIR);
}

}  // namespace
}  // namespace cowfs::e2e
