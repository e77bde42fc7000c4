#include "store/image.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>

#include "tests/store/support.h"

namespace cowfs::test {
namespace {

constexpr size_t kBaseSize = 10 * 4096 + 1234;

class ImageTest : public StoreFixture {
 protected:
  ImageTest() {
    make_base(pattern(1, kBaseSize));
    open();
  }
};

TEST_F(ImageTest, NewImageIsTheBaseAndTakesNoSpace) {
  const auto image = use("a");
  EXPECT_EQ(image->size(), kBaseSize);
  EXPECT_EQ(content(*image), base_content_);
  EXPECT_EQ(image->own_bytes(), 0U);
}

TEST_F(ImageTest, EmptyImageHasNothingOfTheBase) {
  const auto image = use("a", true);
  EXPECT_EQ(image->size(), 0U);
  image->resize(kBaseSize + 100);
  EXPECT_EQ(content(*image), filled(kBaseSize + 100, 0));
}

TEST_F(ImageTest, ImageLargerThanTheBaseReadsZerosBehindIt) {
  Store::NewImage wanted;
  wanted.name = "large";
  wanted.size = 100'000;
  const auto image = store_->create(wanted)->use();
  Bytes expected = base_content_;
  expected.resize(100'000);
  EXPECT_EQ(content(*image), expected);
}

TEST_F(ImageTest, ImageSmallerThanTheBaseNeverShowsTheRest) {
  Store::NewImage wanted;
  wanted.name = "small";
  wanted.size = 5000;
  const auto image = store_->create(wanted)->use();
  image->resize(kBaseSize);
  Bytes expected(kBaseSize);
  std::copy_n(base_content_.begin(), 5000, expected.begin());
  EXPECT_EQ(content(*image), expected);
}

TEST_F(ImageTest, ReadStopsAtTheSize) {
  const auto image = use("a");
  EXPECT_EQ(content(*image, kBaseSize - 10, 100).size(), 10U);
  EXPECT_TRUE(content(*image, kBaseSize, 100).empty());
  EXPECT_TRUE(content(*image, kMaxImageSize, 100).empty());
}

TEST_F(ImageTest, FirstWriteCopiesTheRestOfTheChunk) {
  const auto image = use("a");
  write(*image, 4096 + 100, filled(50, 0xaa));
  EXPECT_EQ(content(*image), over_base(4096 + 100, filled(50, 0xaa)));
  image->flush();
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 4), ".p..");
  EXPECT_EQ(image->own_bytes(), 4096U);
}

TEST_F(ImageTest, WriteOfWholeChunksReadsNothingOfTheBase) {
  const auto image = use("a");
  faults_.set([this](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    return path == base_path() && operation == FileOperation::read ? EIO : 0;
  });
  write(*image, 4096, filled(3 * 4096, 0xbb));
  EXPECT_THROW(write(*image, 5 * 4096 + 1, filled(4095, 0xbb)), Error);
  faults_.clear();
  EXPECT_EQ(content(*image), over_base(4096, filled(3 * 4096, 0xbb)));
}

TEST_F(ImageTest, WriteOverSeveralChunksFillsHeadAndTail) {
  const auto image = use("a");
  write(*image, 4000, pattern(9, 9000));
  EXPECT_EQ(content(*image), over_base(4000, pattern(9, 9000)));
  image->flush();
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 5), "pppp.");
}

TEST_F(ImageTest, WriteInTheLastPartialChunkKeepsTheBasesTail) {
  const auto image = use("a");
  write(*image, 10 * 4096 + 7, filled(3, 1));
  EXPECT_EQ(content(*image), over_base(10 * 4096 + 7, filled(3, 1)));
}

TEST_F(ImageTest, WriteBehindTheEndGrowsWithZerosBetween) {
  const auto image = use("a");
  write(*image, 60'000, filled(10, 7));
  EXPECT_EQ(content(*image), over_base(60'000, filled(10, 7)));
}

TEST_F(ImageTest, EmptyWriteDoesNotGrow) {
  const auto image = use("a");
  write(*image, 1'000'000, {});
  EXPECT_EQ(image->size(), kBaseSize);
}

TEST_F(ImageTest, WriteBeyondTheLargestImageIsRefused) {
  const auto image = use("a");
  EXPECT_EQ(error_of([&] { write(*image, kMaxImageSize, filled(6, 0)); }).code(), EFBIG);
  EXPECT_EQ(error_of([&] { image->resize(kMaxImageSize + 1); }).code(), EFBIG);
  EXPECT_EQ(error_of([&] { image->extend(kMaxImageSize + 1); }).code(), EFBIG);
  EXPECT_EQ(image->size(), kBaseSize);
}

TEST_F(ImageTest, WriteAtTheVeryEndOfTheLargestImageWorks) {
  const auto image = use("a", true);
  try {
    write(*image, kMaxImageSize - 5, filled(5, 3));
  } catch (const Error& error) {
    // The host's files may be smaller: then it is an error, and nothing has changed.
    EXPECT_EQ(error.code(), EFBIG);
    EXPECT_EQ(image->size(), 0U);
    return;
  }
  EXPECT_EQ(
      content(*image, kMaxImageSize - 6, 10),
      (Bytes{std::byte{0}, std::byte{3}, std::byte{3}, std::byte{3}, std::byte{3}, std::byte{3}}));
}

TEST_F(ImageTest, WriteOverTheLargestSizeWritesWhatLiesBelow) {
  const auto image = use("a", true);
  EXPECT_EQ(error_of([&] { write(*image, kMaxImageSize - 8197, filled(8200, 3)); }).code(), EFBIG);
  if (image->size() == 0) return;  // the host's files are smaller
  EXPECT_EQ(image->size(), kMaxImageSize);
  EXPECT_EQ(content(*image, kMaxImageSize - 8197, 8200), filled(8197, 3));
}

TEST_F(ImageTest, ImagesDoNotSeeEachOther) {
  const auto a = use("a");
  const auto b = use("b");
  write(*a, 100, filled(10, 1));
  write(*b, 105, filled(10, 2));
  EXPECT_EQ(content(*a), over_base(100, filled(10, 1)));
  EXPECT_EQ(content(*b), over_base(105, filled(10, 2)));
  EXPECT_EQ(read_file(base_path()), base_content_);
}

TEST_F(ImageTest, InterleavedChunksAreReadRight) {
  const auto image = use("a");
  image->resize(80 * 4096);
  Bytes expected = base_content_;
  expected.resize(80 * 4096);
  for (uint64_t chunk = 0; chunk < 80; ++chunk) {
    if (chunk % 3 == 0) continue;
    const Bytes bytes = chunk % 3 == 1 ? pattern(chunk, 4096) : filled(4096, 0);
    if (chunk % 3 == 1) {
      write(*image, chunk * 4096, bytes);
    } else {
      image->make_zero(chunk * 4096, 4096);
    }
    std::copy(bytes.begin(), bytes.end(), expected.begin() + static_cast<int64_t>(chunk * 4096));
  }
  EXPECT_EQ(content(*image), expected);
  EXPECT_EQ(content(*image, 1000, 200'000),
            Bytes(expected.begin() + 1000, expected.begin() + 201'000));
}

TEST_F(ImageTest, LargeReadOfFarApartRunsIsRight) {
  // Gaps larger than the scratch buffer between runs of one file.
  const auto image = use("a", true);
  Bytes expected(1 << 20);
  image->resize(1 << 20);
  for (uint64_t at = 0; at < 1 << 20; at += 100'000) {
    write(*image, at, pattern(at, 5000));
    const Bytes bytes = pattern(at, 5000);
    std::copy(bytes.begin(), bytes.end(), expected.begin() + static_cast<int64_t>(at));
  }
  EXPECT_EQ(content(*image), expected);
}

// ---- zeroing -----------------------------------------------------------------------------------

TEST_F(ImageTest, ZeroedRangeReadsAsZeros) {
  const auto image = use("a");
  for (const auto& [offset, length] : std::vector<std::pair<uint64_t, size_t>>{
           {10, 20}, {4090, 10}, {8192, 4096}, {3 * 4096 - 1, 4098}, {kBaseSize - 5, 5}}) {
    image->make_zero(offset, length);
    EXPECT_EQ(content(*image, offset, length), filled(length, 0)) << offset;
  }
  EXPECT_EQ(image->size(), kBaseSize);
}

TEST_F(ImageTest, ZeroingKeepsWhatIsAround) {
  const auto image = use("a");
  image->make_zero(5000, 9000);
  EXPECT_EQ(content(*image), over_base(5000, filled(9000, 0)));
}

TEST_F(ImageTest, ZeroingGivesSpaceBackAfterTheCommit) {
  const auto image = use("a");
  write(*image, 0, pattern(5, 8 * 4096));
  image->flush();
  EXPECT_EQ(image->own_bytes(), 8U * 4096);
  image->make_zero(4096, 4 * 4096);
  EXPECT_EQ(image->own_bytes(), 8U * 4096);  // I12
  image->flush();
  EXPECT_EQ(image->own_bytes(), 4U * 4096);
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 8), "pzzzzppp");
}

TEST_F(ImageTest, ZeroingBehindTheEndChangesNothing) {
  const auto image = use("a");
  image->make_zero(kBaseSize, 1'000'000);
  image->make_zero(kMaxImageSize, 5);
  image->make_zero(kMaxImageSize - 1, 5000);
  EXPECT_EQ(image->size(), kBaseSize);
  EXPECT_EQ(content(*image), base_content_);
}

TEST_F(ImageTest, ZeroingOverTheEndKeepsTheSizeAndGrowthShowsZeros) {
  const auto image = use("a");
  image->make_zero(9 * 4096, 1'000'000);
  EXPECT_EQ(image->size(), kBaseSize);
  image->resize(kBaseSize + 10'000);
  Bytes expected = over_base(9 * 4096, filled(kBaseSize - 9 * 4096, 0));
  expected.resize(kBaseSize + 10'000);
  EXPECT_EQ(content(*image), expected);
}

TEST_F(ImageTest, ZeroChunkBehindTheBaseCostsNoMap) {
  const auto image = use("a", true);
  image->resize(1 << 20);
  image->make_zero(0, 1 << 20);
  image->flush();
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 256), std::string(256, '.'));
}

TEST_F(ImageTest, PartialWriteToAZeroChunkFillsWithZeros) {
  const auto image = use("a");
  write(*image, 0, filled(4096, 0x11));
  image->flush();
  image->make_zero(0, 4096);
  write(*image, 100, filled(10, 0x22));
  Bytes expected(4096);
  std::fill_n(expected.begin() + 100, 10, std::byte{0x22});
  EXPECT_EQ(content(*image, 0, 4096), expected);
  image->flush();
  EXPECT_EQ(content(*image, 0, 4096), expected);
}

// ---- size --------------------------------------------------------------------------------------

TEST_F(ImageTest, ShrinkAndGrowNeverBringsOldDataBack) {
  for (const uint64_t size : {0ULL, 1ULL, 100ULL, 4095ULL, 4096ULL, 4097ULL, 20000ULL}) {
    const auto image = use("a" + std::to_string(size));
    write(*image, 0, pattern(3, 30'000));
    image->resize(size);
    EXPECT_EQ(image->size(), size);
    image->resize(kBaseSize + 5000);
    Bytes expected(kBaseSize + 5000);
    const Bytes old = pattern(3, 30'000);
    std::copy_n(old.begin(), size, expected.begin());
    EXPECT_EQ(content(*image), expected) << size;
  }
}

TEST_F(ImageTest, ShrinkAndGrowByAWriteNeverBringsBaseContentBack) {
  const auto image = use("a");
  image->resize(5000);
  write(*image, 20'000, filled(1, 1));
  Bytes expected(20'001);
  std::copy_n(base_content_.begin(), 5000, expected.begin());
  expected[20'000] = std::byte{1};
  EXPECT_EQ(content(*image), expected);
}

TEST_F(ImageTest, ShrinkGivesSpaceBack) {
  const auto image = use("a");
  write(*image, 0, pattern(3, 40'000));
  image->flush();
  image->resize(4096);
  EXPECT_EQ(image->own_bytes(), 4096U);
}

// ---- space -------------------------------------------------------------------------------------

TEST_F(ImageTest, ReserveChangesNeitherContentNorSize) {
  const auto image = use("a");
  write(*image, 4096, filled(4096, 5));
  image->reserve(0, 1 << 20);
  EXPECT_EQ(image->size(), kBaseSize);
  EXPECT_EQ(content(*image), over_base(4096, filled(4096, 5)));
  EXPECT_GE(image->own_bytes(), 1U << 20);
  write(*image, 9000, filled(10, 6));
  EXPECT_EQ(content(*image, 4096, 4096), filled(4096, 5));
  EXPECT_EQ(content(*image, 8192, 808),
            Bytes(base_content_.begin() + 8192, base_content_.begin() + 9000));
}

TEST_F(ImageTest, ReservedSpaceIsGivenBackByZeroing) {
  const auto image = use("a");
  image->reserve(0, 1 << 20);
  image->make_zero(0, 1 << 20);
  image->flush();
  EXPECT_EQ(image->own_bytes(), 0U);
}

TEST_F(ImageTest, HolesAreOnlyWhatReadsAsZeros) {
  const auto image = use("a");
  EXPECT_EQ(image->next_data(0), 0U);
  EXPECT_EQ(image->next_hole(0), kBaseSize);
  EXPECT_EQ(image->next_data(kBaseSize), std::nullopt);
  EXPECT_EQ(image->next_hole(kBaseSize), std::nullopt);
  image->make_zero(4096, 8192);
  EXPECT_EQ(image->next_hole(0), 4096U);
  EXPECT_EQ(image->next_data(4096), 3U * 4096);
  image->resize(1 << 20);
  EXPECT_EQ(image->next_hole(3 * 4096), kBaseSize);
  EXPECT_EQ(image->next_data(kBaseSize), std::nullopt);
  write(*image, 500'000, filled(10, 1));
  EXPECT_EQ(image->next_data(kBaseSize), 500'000U / 4096 * 4096);
}

TEST_F(ImageTest, HolesOfTheBaseAreHoles) {
  crash();
  Bytes sparse_base = filled(1 << 20, 0);
  File(base_path(), O_RDWR | O_TRUNC).truncate(1 << 20);
  File(base_path(), O_RDWR).write(pattern(1, 4096), 512 << 10);
  Store::Options changed = options();
  changed.accept_changed_base = true;
  store_ = std::make_unique<Store>(changed);
  const auto image = store_->create({.name = "s", .empty = false, .size = std::nullopt})->use();
  EXPECT_EQ(image->size(), 1U << 20);
  EXPECT_EQ(image->next_data(0), 512U << 10);
  EXPECT_EQ(image->next_hole(512 << 10), (512U << 10) + 4096);
}

TEST_F(ImageTest, ImageInNoUseClosesItsFile) {
  { write(*use("a"), 0, filled(10, 1)); }
  const auto image = store_->find("a");
  EXPECT_TRUE(image->in_use_or_open());
  image->retire_if_idle();
  EXPECT_FALSE(image->in_use_or_open());
  EXPECT_EQ(content(*use("a"), 0, 10), filled(10, 1));
}

TEST_F(ImageTest, ImageInUseIsNotClosed) {
  const auto image = use("a");
  image->retire_if_idle();
  EXPECT_TRUE(image->in_use_or_open());
}

class ImageChunkSizeTest : public StoreFixture, public ::testing::WithParamInterface<uint32_t> {};

TEST_P(ImageChunkSizeTest, HeadBodyAndTailAreRight) {
  chunk_size_ = GetParam();
  const uint64_t chunk = GetParam();
  make_base(pattern(4, 3 * chunk + 777));
  open();
  Bytes expected = base_content_;
  const auto image = use("a");
  for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
           {chunk - 1, 2}, {2 * chunk - 3, chunk + 6}, {0, 1}, {3 * chunk + 700, 500}}) {
    const Bytes bytes = pattern(offset, length);
    write(*image, offset, bytes);
    expected.resize(std::max<size_t>(expected.size(), offset + length));
    std::copy(bytes.begin(), bytes.end(), expected.begin() + static_cast<int64_t>(offset));
    EXPECT_TRUE(content(*image) == expected) << offset;
  }
  EXPECT_EQ(image->size(), 3 * chunk + 1200);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ImageChunkSizeTest, ::testing::Values(4096, 65536, 2 << 20));

}  // namespace
}  // namespace cowfs::test
