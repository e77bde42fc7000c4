#include "fs/inodes.h"

#include <gtest/gtest.h>

namespace cowfs {
namespace {

TEST(Root, IsShownAsTheOptionsSay) {
  const struct stat plain = status_of_root(0, {}, 0);
  EXPECT_EQ(plain.st_mode, S_IFDIR | 0755U);
  const struct stat shown = status_of_root(0, {.uid = 7, .gid = 8, .umask = 0027}, -1'500'000'000);
  EXPECT_EQ(shown.st_uid, 7U);
  EXPECT_EQ(shown.st_gid, 8U);
  EXPECT_EQ(shown.st_mode, S_IFDIR | 0750U);
  EXPECT_EQ(shown.st_mtim.tv_sec, -2);
  EXPECT_EQ(shown.st_mtim.tv_nsec, 500'000'000);
}

}  // namespace
}  // namespace cowfs
