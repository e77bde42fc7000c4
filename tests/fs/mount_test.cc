#include "fs/mount.h"

#include <gtest/gtest.h>

namespace cowfs {
namespace {

TEST(FuseOption, CommasAndBackslashesInAValueAreEscaped) {
  EXPECT_EQ(fuse_option("fsname", "/srv/base.img"), "fsname=/srv/base.img");
  EXPECT_EQ(fuse_option("fsname", "/srv/a,b\\c"), "fsname=/srv/a\\,b\\\\c");
}

}  // namespace
}  // namespace cowfs
