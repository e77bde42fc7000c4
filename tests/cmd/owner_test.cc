#include "cmd/owner.h"

#include <gtest/gtest.h>

#include "cmd/command.h"

namespace cowfs {
namespace {

TEST(Owners, NamesAndNumbersAreTaken) {
  EXPECT_EQ(parse_owner("root").uid, 0U);
  EXPECT_FALSE(parse_owner("root").gid);
  EXPECT_EQ(parse_owner("root:root").gid, 0U);
  EXPECT_EQ(parse_owner("1234:5678").uid, 1234U);
  EXPECT_EQ(parse_owner("1234:5678").gid, 5678U);
}

TEST(Owners, WhoDoesNotExistIsRefused) {
  for (const char* text : {"", ":", "root:", ":root", "no-such-user", "root:no-such-group", "-1",
                           "4294967295", "1:2:3"}) {
    EXPECT_THROW(parse_owner(text), UsageError) << text;
  }
}

TEST(Modes, AreOctalPermissionBits) {
  EXPECT_EQ(parse_mode("640"), 0640U);
  EXPECT_EQ(parse_mode("0600"), 0600U);
  EXPECT_EQ(parse_mode("0"), 0U);
  for (const char* text : {"", "8", "1777", "u+w", "0x1f", "-1", "644 "}) {
    EXPECT_THROW(parse_mode(text), UsageError) << text;
  }
}

}  // namespace
}  // namespace cowfs
