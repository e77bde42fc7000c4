#include "store/host_fs.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "tests/store/support.h"

namespace cowfs::test {
namespace {

TEST(HostFs, NetworkFileSystemsAreKnownByName) {
  for (const char* type :
       {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "glusterfs"}) {
    if (std::string_view(type) == "glusterfs") continue;  // it is mounted as fuse.glusterfs
    EXPECT_TRUE(is_network_type(type)) << type;
  }
  EXPECT_TRUE(is_network_type("fuse.glusterfs"));
  for (const char* type :
       {"ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk", "fuse.cowfs", ""}) {
    EXPECT_FALSE(is_network_type(type)) << type;
  }
}

TEST(HostFs, RootIsAMount) {
  const auto all = mounts();
  EXPECT_TRUE(std::any_of(all.begin(), all.end(),
                          [](const MountEntry& entry) { return entry.point == "/"; }));
  EXPECT_TRUE(mount_at("/"));
  EXPECT_FALSE(mount_at("/no/such/mount"));
}

TEST(HostFs, ProcIsNamed) { EXPECT_EQ(host_file_system("/proc").type, "proc"); }

TEST(HostFs, WhatIsNoEscapeStaysAsItIs) {
  const MountEntry entry = parse_mount_entry(R"(1 2 0:40 / /a\040b\xyz\778\0 rw - t \999)");
  EXPECT_EQ(entry.point, R"(/a b\xyz\778\0)");
  EXPECT_EQ(entry.source, R"(\999)");
}

TEST(HostFs, MissingPathIsAnError) {
  EXPECT_EQ(error_of([] { host_file_system("/no/such/path"); }).code(), ENOENT);
}

TEST(HostFs, SpaceIsPlausible) {
  const TempDir directory;
  const Space space = space_at(directory.path());
  EXPECT_GT(space.total, 0U);
  EXPECT_GE(space.total, space.free);
  EXPECT_GE(space.free, space.available);
}

TEST(HostFs, MountPointsWithSpacesAndBackslashesAreUnescaped) {
  const TempDir directory;
  const std::string point = directory / "a b\\040c\n#";
  ASSERT_EQ(::mkdir(point.c_str(), 0700), 0);
  if (::mount("odd source", point.c_str(), "tmpfs", MS_RDONLY, "size=1m") != 0) {
    GTEST_SKIP() << "no right to mount: " << error_text(errno);
  }
  const auto entry = mount_at(point);
  const HostFileSystem host = host_file_system(point);
  ::umount2(point.c_str(), MNT_DETACH);
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->type, "tmpfs");
  EXPECT_EQ(entry->source, "odd source");
  EXPECT_EQ(host.type, "tmpfs");
  EXPECT_TRUE(host.in_memory);
  EXPECT_TRUE(host.read_only);
}

}  // namespace
}  // namespace cowfs::test
