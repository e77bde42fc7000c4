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

TEST(Error, SubjectThatWasNamedAlreadyIsLeftOut) {
  EXPECT_EQ(without_subject("image a: is full", "image a"), "is full");
  EXPECT_EQ(without_subject("image ab: is full", "image a"), "image ab: is full");
  EXPECT_EQ(without_subject("image a", "image a"), "image a");
  EXPECT_EQ(without_subject("disk: image a: x", "image a"), "disk: image a: x");
}

TEST(Error, TextOfUnknownNumberIsNotEmpty) { EXPECT_FALSE(error_text(99999).empty()); }

}  // namespace
}  // namespace cowfs
