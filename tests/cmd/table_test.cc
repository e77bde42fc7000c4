#include "cmd/table.h"

#include <gtest/gtest.h>

namespace cowfs {
namespace {

TEST(Tables, ColumnsAreAlignedByCharacters) {
  Table table({{"NAME"}, {"SIZE", Table::Align::right}, {"USED BY"}});
  table.add_row({"dom1.img", "16 MiB", "-"});
  table.add_row({"übung", "1 GiB", "/dev/loop0"});
  EXPECT_EQ(table.text(),
            "NAME        SIZE  USED BY\n"
            "dom1.img  16 MiB  -\n"
            "übung      1 GiB  /dev/loop0\n");
}

TEST(Tables, NoRowsLeaveTheTitles) {
  EXPECT_EQ(Table({{"NAME"}, {"SIZE"}}).text(), "NAME  SIZE\n");
}

TEST(Times, AreExactToTheNanosecond) {
  EXPECT_EQ(format_time_exact(0), "1970-01-01T00:00:00.000000000Z");
  EXPECT_EQ(format_time_exact(1'795'501'500'123'456'789), "2026-11-24T06:25:00.123456789Z");
  EXPECT_EQ(format_time_exact(-1), "1969-12-31T23:59:59.999999999Z");
}

TEST(Bars, SomethingIsNotNothingAndAllIsOnlyAll) {
  EXPECT_NE(percent_bar(0.1), percent_bar(0));
  EXPECT_NE(percent_bar(99.9), percent_bar(100));
  EXPECT_EQ(percent_bar(50), percent_bar(51));
}

}  // namespace
}  // namespace cowfs
