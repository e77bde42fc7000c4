#include "store/error.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "store/descriptor.h"

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

// As memory for a text may.
std::string changing_errno() {
  errno = EACCES;
  return "write";
}

TEST(Error, OfErrnoIsTheOneFromBeforeItsTextWasMade) {
  errno = ENOSPC;
  const Error error{errno, changing_errno()};
  EXPECT_EQ(error.code(), ENOSPC);
}

TEST(Descriptors, AreTriedForAgainWhoeverMadeRoom) {
  int tries = 0;
  with_descriptors(
      [&] {
        if (++tries == 1) throw Error(EMFILE, "open");
      },
      [] { return false; });
  EXPECT_EQ(tries, 2);
}

TEST(Descriptors, MayBeTakenByOthersFirst) {
  int tries = 0;
  int rooms = 0;
  with_descriptors(
      [&] {
        if (++tries <= 3) throw Error(ENFILE, "open");
      },
      [&] {
        ++rooms;
        return true;
      });
  EXPECT_EQ(tries, 4);
  EXPECT_EQ(rooms, 3);
}

TEST(Descriptors, AreNotTriedForForEverNorForOtherErrors) {
  int tries = 0;
  const auto open = [&](int code) {
    tries = 0;
    try {
      with_descriptors(
          [&] {
            ++tries;
            throw Error(code, "open");
          },
          [] { return true; });
    } catch (const Error& error) {
      return error.code();
    }
    return 0;
  };
  EXPECT_EQ(open(EMFILE), EMFILE);
  EXPECT_EQ(tries, 4);
  EXPECT_EQ(open(EIO), EIO);
  EXPECT_EQ(tries, 1);
}

}  // namespace
}  // namespace cowfs
