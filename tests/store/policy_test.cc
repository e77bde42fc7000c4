#include "store/policy.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "tests/store/support.h"

namespace cowfs::test {
namespace {

TEST(Policy, SparseIsThereWithChunksOf4KiB) {
  EXPECT_EQ(find_policy("sparse").default_chunk_size, 4096U);
}

TEST(Policy, PoolIsThereWithChunksOf64KiB) {
  EXPECT_EQ(find_policy("pool").default_chunk_size, 65536U);
}

TEST(Policy, UnknownOneIsRefusedAndTheKnownAreNamed) {
  const Error error = error_of([] { find_policy("dense"); });
  EXPECT_EQ(error.code(), EINVAL);
  EXPECT_NE(std::string(error.what()).find("sparse"), std::string::npos);
}

TEST(Policy, EachHasANameAValidChunkSizeAndAMaker) {
  for (const Policy& policy : policies()) {
    EXPECT_FALSE(policy.name.empty());
    EXPECT_TRUE(ChunkSize::valid(policy.default_chunk_size));
    EXPECT_NE(policy.open, nullptr);
    EXPECT_EQ(&find_policy(policy.name), &policy);
  }
}

TEST(ChunkSize, PowersOfTwoFrom4KiBTo2MiBAreValid) {
  for (uint64_t bytes = 4096; bytes <= 2U << 20; bytes *= 2) EXPECT_TRUE(ChunkSize::valid(bytes));
  for (const uint64_t bytes : {0ULL, 1ULL, 512ULL, 2048ULL, 4097ULL, 12288ULL, 4ULL << 20,
                               1ULL << 32, (1ULL << 32) + 4096}) {
    EXPECT_FALSE(ChunkSize::valid(bytes)) << bytes;
  }
}

TEST(ChunkSize, RoundsUpAndDown) {
  const ChunkSize chunk(65536);
  EXPECT_EQ(chunk.up(0), 0U);
  EXPECT_EQ(chunk.up(1), 65536U);
  EXPECT_EQ(chunk.up(65536), 65536U);
  EXPECT_EQ(chunk.down(65535), 0U);
  EXPECT_EQ(chunk.chunk_of(65536), 1U);
  EXPECT_EQ(chunk.up(kMaxImageSize), kMaxImageSize);
}

}  // namespace
}  // namespace cowfs::test
