#include "store/error.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace cowfs {
namespace {

TEST(Error, ContextIsFollowedByWhatTheNumberMeans) {
  const Error error(ENOENT, "open /srv/base.img");
  EXPECT_EQ(error.code(), ENOENT);
  EXPECT_STREQ(error.what(), "open /srv/base.img: No such file or directory");
}

TEST(Error, MessageStandsAsGiven) {
  const Error error = Error::with_message(EBUSY, "store /s: in use");
  EXPECT_EQ(error.code(), EBUSY);
  EXPECT_STREQ(error.what(), "store /s: in use");
}

TEST(Error, TextOfUnknownNumberIsNotEmpty) { EXPECT_FALSE(error_text(99999).empty()); }

}  // namespace
}  // namespace cowfs
