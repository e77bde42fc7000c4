#include "store/names.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "tests/store/support.h"

namespace cowfs::test {
namespace {

TEST(Names, OrdinaryOnesAreGood) {
  for (const std::string name : {"dom1.img", "a", ".hidden", "...", "cowfs", "x.cowfs", "-", " ",
                                 "snapshots", "Fuß.img", "日本.img"}) {
    EXPECT_NO_THROW(check_name(name)) << name;
  }
  EXPECT_NO_THROW(check_name(std::string(200, 'x')));
}

TEST(Names, BadOnesAreRefusedWithAReason) {
  const std::vector<std::string> names{"",
                                       ".",
                                       "..",
                                       "a/b",
                                       "/",
                                       "dom1@clean",
                                       "@",
                                       "a\nb",
                                       "a\x1b[31m",
                                       "\x7f",
                                       ".cowfs",
                                       ".cowfs-stats",
                                       ".snapshots",
                                       ".snapshots1",
                                       std::string("a\0b", 3),
                                       "\t",
                                       std::string(201, 'x')};
  for (const std::string& name : names) {
    const Error error = error_of([&] { check_name(name); });
    EXPECT_EQ(error.code(), EINVAL) << printable(name);
    for (const char c : std::string(error.what())) EXPECT_GE(static_cast<unsigned char>(c), 0x20);
  }
}

TEST(Names, PrintableLeavesTextAlone) {
  EXPECT_EQ(printable("dom1.img"), "dom1.img");
  EXPECT_EQ(printable("Fuß 日本 🐄"), "Fuß 日本 🐄");
}

TEST(Names, PrintableEscapesWhatATerminalObeys) {
  EXPECT_EQ(printable("a\x1b[31m\n"), "a\\x1b[31m\\x0a");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\xc2\\x9b"
            "31m");  // C1 control sequence introducer
  EXPECT_EQ(printable("\x7f"), "\\x7f");
}

TEST(Names, PrintableEscapesWhatIsNoUtf8) {
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf");                    // overlong
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // beyond Unicode
  EXPECT_EQ(printable("a\xe6\x97"), "a\\xe6\\x97");                  // cut short
}

}  // namespace
}  // namespace cowfs::test
