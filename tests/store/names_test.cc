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

TEST(Names, PrintableEscapesWhatIsNotSeenAndWhatTurnsText) {
  for (const std::string name :
       {"\u0080", "\u009f", "\u00ad", "\u061c", "\u180e", "\u200b", "\u200d", "\u200f", "\u2028",
        "\u2029", "\u202a", "\u202e", "\u2060", "\u2066", "\u2069", "\ufeff", "\U000e0041"}) {
    const std::string shown = printable("a" + name + "b");
    EXPECT_EQ(shown.size(), 2 + 4 * name.size()) << shown;
    EXPECT_EQ(printable(shown), shown);
  }
  EXPECT_EQ(printable("dom\u202egmi.1"), "dom\\xe2\\x80\\xaegmi.1");
  EXPECT_EQ(printable("\u00a0\u00ae\u2010\u2027\u202f\u3000"),
            "\u00a0\u00ae\u2010\u2027\u202f\u3000");
}

TEST(Names, PrintableEscapesWhatIsNoUtf8) {
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf");                    // overlong
  EXPECT_EQ(printable("\xe0\x80\xaf"), "\\xe0\\x80\\xaf");           // likewise
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // beyond Unicode
  EXPECT_EQ(printable("a\xe6\x97"), "a\\xe6\\x97");                  // cut short
}

}  // namespace
}  // namespace cowfs::test
