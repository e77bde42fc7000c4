#include "cmd/sizes.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "cmd/command.h"

namespace cowfs {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

int ErrorOfSize(const std::string& text) {
  try {
    parse_size(text);
  } catch (const Error& error) {
    return error.code();
  }
  return 0;
}

TEST(Sizes, PlainNumbersAreBytes) {
  EXPECT_EQ(parse_size("0"), 0U);
  EXPECT_EQ(parse_size("4096"), 4096U);
  EXPECT_EQ(parse_size("1000001"), 1000001U);
}

TEST(Sizes, UnitsArePowersOf1024InEitherCase) {
  EXPECT_EQ(parse_size("64K"), 65536U);
  EXPECT_EQ(parse_size("64k"), 65536U);
  EXPECT_EQ(parse_size("64KiB"), 65536U);
  EXPECT_EQ(parse_size("3M"), 3U << 20);
  EXPECT_EQ(parse_size("20G"), 20 * kGiB);
  EXPECT_EQ(parse_size("1T"), 1024 * kGiB);
  EXPECT_EQ(parse_size("1P"), 1024 * 1024 * kGiB);
}

TEST(Sizes, FractionsOfAUnitAreTakenToTheByte) {
  EXPECT_EQ(parse_size("1.5G"), kGiB + kGiB / 2);
  EXPECT_EQ(parse_size("0.5K"), 512U);
  EXPECT_EQ(parse_size("1.75KiB"), 1792U);
  EXPECT_EQ(parse_size("0.0001K"), 0U);
  EXPECT_EQ(parse_size("0.99999999999999999999999K"), 1023U);
}

TEST(Sizes, WhatIsNoSizeIsRefused) {
  for (const char* text :
       {"",    "K",   "-1",   "+1",   " 1",  "1 ",   "1 K", "many", "1.5.5G", "1.G",
        ".5G", "1.5", "12KB", "12Ki", "12X", "0x10", "1e3", "1,5G", "KiB",    "5KK"}) {
    EXPECT_EQ(ErrorOfSize(text), EINVAL) << text;
  }
}

TEST(Sizes, WhatDoesNotFitIsRefused) {
  EXPECT_EQ(parse_size("9223372036854775807"), INT64_MAX);
  for (const char* text : {"9223372036854775808", "99999999999999999999", "8192P", "9000000P",
                           "18446744073709551616K"}) {
    EXPECT_EQ(ErrorOfSize(text), ERANGE) << text;
  }
}

TEST(Sizes, AnImageHasAtMostOnePebibyte) {
  EXPECT_EQ(parse_image_size("1P"), 1024 * 1024 * kGiB);
  EXPECT_THROW(parse_image_size("1125899906842625"), UsageError);
  EXPECT_THROW(parse_image_size("many"), UsageError);
}

TEST(Sizes, ChunkSizesArePowersOfTwoInRange) {
  EXPECT_EQ(parse_chunk_size("4K"), 4096U);
  EXPECT_EQ(parse_chunk_size("65536"), 65536U);
  EXPECT_EQ(parse_chunk_size("2MiB"), 2U << 20);
  for (const char* text : {"0", "1", "2K", "4095", "5K", "3M", "4M", "1.5M"}) {
    EXPECT_THROW(parse_chunk_size(text), UsageError) << text;
  }
}

TEST(Sizes, AreShownShort) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(1023), "1023 B");
  EXPECT_EQ(format_size(1024), "1 KiB");
  EXPECT_EQ(format_size(1536), "1.5 KiB");
  EXPECT_EQ(format_size(16U << 20), "16 MiB");
  EXPECT_EQ(format_size((16U << 20) + (1U << 19)), "16 MiB");
  EXPECT_EQ(format_size(kGiB - 1), "1 GiB");
  EXPECT_EQ(format_size(1024 * kGiB), "1 TiB");
  EXPECT_EQ(format_size(uint64_t{1} << 50), "1 PiB");
  EXPECT_EQ(format_size(uint64_t{1} << 62), "4096 PiB");
}

TEST(Sizes, PercentStaysBetween0And100) {
  EXPECT_EQ(private_percent(0, 100), 0);
  EXPECT_EQ(private_percent(0, 0), 0);
  EXPECT_EQ(private_percent(4096, 0), 0);
  EXPECT_EQ(private_percent(1, 3), 33.3);
  EXPECT_EQ(private_percent(4096, 100), 100);  // a chunk is larger than the image
}

}  // namespace
}  // namespace cowfs
