#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <random>
#include <utility>
#include <vector>

#include "store/base_verdict.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

class BaseTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::string path() const { return directory_ / "base.img"; }
  [[nodiscard]] Error refusal(const std::string& path) const {
    return error_of([&] { const Base base(path); });
  }
  void change_byte(uint64_t offset) const {
    const File file(path(), O_RDWR);
    Bytes byte(1);
    file.read_exactly(byte, offset);
    byte[0] ^= std::byte{1};
    file.write(byte, offset);
  }
  /// Sets the modification time back to what `row` says.
  void restore_mtime(const BaseRow& row) const {
    timespec times[2]{};
    times[0].tv_nsec = UTIME_OMIT;
    times[1] = {.tv_sec = row.mtime_ns / 1'000'000'000, .tv_nsec = row.mtime_ns % 1'000'000'000};
    ASSERT_EQ(::utimensat(AT_FDCWD, path().c_str(), times, 0), 0);
  }
  [[nodiscard]] BaseRow record() const {
    const Base base(path());
    BaseRow row = base.identity();
    row.fingerprint = base.fingerprint();
    return row;
  }
  [[nodiscard]] BaseVerdict judge(const BaseRow& recorded, bool accept = false) const {
    return judge_base(Base(path()), recorded, accept);
  }
  using Pieces = std::vector<std::pair<uint64_t, uint64_t>>;  // offset, length
  /// What the fingerprint reads, by offset.
  [[nodiscard]] Pieces sampled() const {
    Pieces pieces;
    const FaultHook hook = [&](const std::string&, FileOperation operation, uint64_t offset,
                               uint64_t length) {
      if (operation == FileOperation::read) pieces.emplace_back(offset, length);
      return 0;
    };
    static_cast<void>(Base(path(), {}, &hook).fingerprint());
    return pieces;
  }
  static std::mt19937_64 seeded() {
    const uint64_t seed = random_seed();
    RecordProperty("seed", std::to_string(seed));
    return std::mt19937_64(seed);
  }
  static constexpr uint64_t kLarge = (uint64_t{300} << 20) + 777;  // not all of it is sampled
  TempDir directory_;
};

TEST_F(BaseTest, MissingOneIsNamed) {
  const Error error = refusal(path());
  EXPECT_EQ(error.code(), ENOENT);
  EXPECT_NE(std::string(error.what()).find(path()), std::string::npos);
}

TEST_F(BaseTest, DirectoryIsRefused) { EXPECT_EQ(refusal(directory_.path()).code(), EISDIR); }

TEST_F(BaseTest, EmptyOneIsRefused) {
  write_file(path(), {});
  EXPECT_EQ(refusal(path()).code(), EINVAL);
}

TEST_F(BaseTest, PipeIsRefusedWithoutWaiting) {
  ASSERT_EQ(::mkfifo(path().c_str(), 0600), 0);
  EXPECT_EQ(refusal(path()).code(), EINVAL);
}

TEST_F(BaseTest, CharacterDeviceIsRefused) { EXPECT_EQ(refusal("/dev/zero").code(), EINVAL); }

TEST_F(BaseTest, UnreadableOneIsRefused) {
  write_file(path(), pattern(1, 100));
  ASSERT_EQ(::chmod(path().c_str(), 0), 0);
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
  const uid_t self = ::geteuid();
  if (self == 0) {  // root reads everything
    ASSERT_EQ(::seteuid(65534), 0);
  }
  const Error error = refusal(path());
  if (self == 0) {
    ASSERT_EQ(::seteuid(0), 0);
  }
  EXPECT_EQ(error.code(), EACCES);
}

TEST_F(BaseTest, TooLargeOneIsRefused) {
  // tmpfs has files of this size, ext4 has not.
  const std::string huge = "/dev/shm/cowfs-test-" + std::to_string(::getpid());
  const File file(huge, O_RDWR | O_CREAT | O_EXCL, 0600);
  EXPECT_NO_THROW(file.truncate(kMaxImageSize + 4096));
  const Error error = refusal(huge);
  remove_file(huge);
  EXPECT_EQ(error.code(), EFBIG);
}

TEST_F(BaseTest, OddSizeIsExactAndPathAbsolute) {
  write_file(path(), pattern(1, 12345));
  const auto old = std::filesystem::current_path();
  std::filesystem::current_path(directory_.path());
  const Base base("./x/../base.img");
  std::filesystem::current_path(old);
  EXPECT_EQ(base.size(), 12345U);
  EXPECT_EQ(base.path(), path());
  EXPECT_FALSE(base.is_device());
}

TEST_F(BaseTest, ReadingLeavesTheAccessTimeAlone) {
  write_file(path(), pattern(1, 12345));
  timespec times[2]{{.tv_sec = 1000, .tv_nsec = 0}, {.tv_sec = 2000, .tv_nsec = 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path().c_str(), times, 0), 0);
  const Base base(path());
  Bytes buffer(12345);
  base.read(buffer, 0);
  EXPECT_EQ(buffer, pattern(1, 12345));
  EXPECT_EQ(base.file().status().st_atim.tv_sec, 1000);
}

TEST_F(BaseTest, BaseThatHasBecomeShorterIsAnError) {
  write_file(path(), pattern(1, 12345));
  const Base base(path());
  ASSERT_EQ(::truncate(path().c_str(), 100), 0);
  Bytes buffer(200);
  EXPECT_EQ(error_of([&] { base.read(buffer, 0); }).code(), EIO);
}

TEST_F(BaseTest, FingerprintSeesEveryByteOfASmallBase) {
  write_file(path(), pattern(1, 3'000'000));
  const auto before = Base(path()).fingerprint();
  for (const uint64_t at : {0ULL, 1'500'000ULL, 2'999'999ULL}) {
    change_byte(at);
    EXPECT_NE(Base(path()).fingerprint(), before) << at;
    change_byte(at);
    EXPECT_EQ(Base(path()).fingerprint(), before);
  }
}

TEST_F(BaseTest, FingerprintOfALargeBaseSeesBothEndsAndTheMiddle) {
  constexpr uint64_t kSize = (uint64_t{300} << 20) + 777;
  File(path(), O_RDWR | O_CREAT, 0600).truncate(kSize);
  const auto before = Base(path()).fingerprint();
  EXPECT_EQ(before.size(), 16U);
  for (const uint64_t at :
       {uint64_t{0}, uint64_t{(1 << 20) - 1}, uint64_t{1 << 20}, kSize - 1, kSize - (1 << 20)}) {
    change_byte(at);
    EXPECT_NE(Base(path()).fingerprint(), before) << at;
    change_byte(at);
  }
  // Samples are spread: a changed stretch of 2 MiB anywhere cannot hide between them.
  const File file(path(), O_RDWR);
  for (uint64_t at = 0; at + (2 << 20) < kSize; at += 37 << 20) {
    file.write(filled(2 << 20, 1), at);
    EXPECT_NE(Base(path()).fingerprint(), before) << at;
    file.write(filled(2 << 20, 0), at);
  }
}

TEST_F(BaseTest, FingerprintReadsAsMuchOfAVeryLargeBase) {
  const uint64_t size = uint64_t{8} << 40;  // ext4 has no more than 16 TiB
  File(path(), O_RDWR | O_CREAT, 0600).truncate(size);
  const Pieces pieces = sampled();
  uint64_t sum = 0;
  for (const auto& [offset, length] : pieces) sum += length;
  EXPECT_EQ(sum, uint64_t{18} << 20);
  EXPECT_EQ(pieces.size(), 258U);
}

TEST_F(BaseTest, OneChangedSectorIsSeenInASampleAlsoWithTheOldTime) {
  File(path(), O_RDWR | O_CREAT, 0600).truncate(kLarge);
  const BaseRow recorded = record();
  const Pieces pieces = sampled();
  auto random = seeded();
  for (int i = 0; i < 10; ++i) {
    const auto& [offset, length] = pieces[random() % pieces.size()];
    const uint64_t sector = offset + random() % (length / 512) * 512;
    change_byte(sector + random() % 512);
    EXPECT_EQ(judge(recorded).kind, BaseVerdict::Kind::refused) << sector;
    restore_mtime(recorded);
    EXPECT_EQ(judge(recorded).kind, BaseVerdict::Kind::refused) << sector;
    File(path(), O_RDWR).write(filled(512, 0), sector);
  }
  EXPECT_EQ(Base(path()).fingerprint(), recorded.fingerprint);
}

TEST_F(BaseTest, OneChangedSectorBetweenTheSamplesIsSeenByItsTimeAlone) {
  File(path(), O_RDWR | O_CREAT, 0600).truncate(kLarge);
  const BaseRow recorded = record();
  const Pieces pieces = sampled();
  auto random = seeded();
  for (int i = 0; i < 10; ++i) {
    const size_t before = 1 + random() % (pieces.size() - 3);  // both ends adjoin a piece
    const uint64_t begin = pieces[before].first + pieces[before].second;
    const uint64_t sector = begin + random() % ((pieces[before + 1].first - begin) / 512) * 512;
    change_byte(sector + random() % 512);
    EXPECT_EQ(judge(recorded).kind, BaseVerdict::Kind::refused) << sector;
    restore_mtime(recorded);
    // What a sample cannot see; cowfs-consistency(7) says so.
    EXPECT_EQ(judge(recorded).kind, BaseVerdict::Kind::same_content) << sector;
  }
}

TEST_F(BaseTest, WrittenBaseIsComparedAlsoIfNothingElseChanged) {
  write_file(path(), pattern(1, 10000));
  BaseRow recorded = record();
  recorded.written_ns = 5;
  BaseVerdict verdict = judge(recorded);
  EXPECT_EQ(verdict.kind, BaseVerdict::Kind::same_content);
  EXPECT_EQ(verdict.row.written_ns, 5) << "a sample does not clear it";
  recorded.fingerprint[0] ^= std::byte{1};
  EXPECT_EQ(judge(recorded).kind, BaseVerdict::Kind::refused);
}

TEST_F(BaseTest, WriterAndChecksumStayOnRecordWhenTheBaseMoves) {
  write_file(path(), pattern(1, 10000));
  BaseRow recorded = record();
  recorded.written_ns = 5;
  recorded.checksum = filled(16, 7);
  recorded.path = "/elsewhere/base.img";
  ++recorded.inode;
  const BaseRow row = judge(recorded).row;
  EXPECT_EQ(row.path, path());
  EXPECT_EQ(row.written_ns, 5);
  EXPECT_EQ(row.checksum, recorded.checksum);
}

TEST_F(BaseTest, AcceptingABaseTakesTheWriterFromTheRecord) {
  write_file(path(), pattern(1, 10000));
  BaseRow recorded = record();
  recorded.written_ns = 5;
  recorded.checksum = filled(16, 7);
  BaseVerdict verdict = judge(recorded, true);
  EXPECT_EQ(verdict.kind, BaseVerdict::Kind::same_content);
  EXPECT_FALSE(verdict.row.written_ns);
  EXPECT_EQ(verdict.row.checksum, recorded.checksum);
  change_byte(17);
  verdict = judge(recorded, true);
  EXPECT_FALSE(verdict.row.written_ns);
  EXPECT_TRUE(verdict.row.checksum.empty()) << "it is another content's";
}

TEST_F(BaseTest, UnchangedBaseIsAcceptedWithoutReadingIt) {
  write_file(path(), pattern(1, 10000));
  const BaseRow recorded = record();
  Faults faults;
  const FaultHook hook = faults.hook();
  const Base base(path(), {}, &hook);
  faults.set([](const std::string&, FileOperation operation, uint64_t, uint64_t) {
    return operation == FileOperation::read ? EIO : 0;
  });
  const BaseVerdict verdict = judge_base(base, recorded, false);
  EXPECT_EQ(verdict.kind, BaseVerdict::Kind::unchanged);
  EXPECT_EQ(verdict.row.fingerprint, recorded.fingerprint);
}

TEST_F(BaseTest, OtherContentIsRefusedAndTheWaysOnAreNamed) {
  write_file(path(), pattern(1, 10000));
  const BaseRow recorded = record();
  change_byte(5000);
  const BaseVerdict verdict = judge(recorded);
  EXPECT_EQ(verdict.kind, BaseVerdict::Kind::refused);
  EXPECT_NE(verdict.reason.find("--accept-changed-base"), std::string::npos);
  EXPECT_EQ(judge(recorded, true).kind, BaseVerdict::Kind::same_content);
  EXPECT_NE(judge(recorded, true).row.fingerprint, recorded.fingerprint);
}

TEST_F(BaseTest, OtherContentWithTheOldTimeIsRefused) {
  write_file(path(), pattern(1, 10000));
  const BaseRow recorded = record();
  change_byte(5000);
  restore_mtime(recorded);
  EXPECT_EQ(judge(recorded).kind, BaseVerdict::Kind::refused);
}

TEST_F(BaseTest, OtherSizeIsRefused) {
  write_file(path(), pattern(1, 10000));
  const BaseRow recorded = record();
  write_file(path(), pattern(1, 10001));
  const BaseVerdict verdict = judge(recorded);
  EXPECT_EQ(verdict.kind, BaseVerdict::Kind::refused);
  EXPECT_NE(verdict.reason.find("10000"), std::string::npos);
  EXPECT_EQ(judge(recorded, true).row.size, 10001U);
}

TEST_F(BaseTest, CarefulCopyIsAcceptedWithALogLine) {
  write_file(path(), pattern(1, 10000));
  const BaseRow recorded = record();
  std::filesystem::rename(path(), directory_ / "old");
  write_file(path(), pattern(1, 10000));
  restore_mtime(recorded);
  const BaseVerdict verdict = judge(recorded);
  EXPECT_EQ(verdict.kind, BaseVerdict::Kind::same_content);
  EXPECT_FALSE(verdict.reason.empty());
  EXPECT_NE(verdict.row.inode, recorded.inode);
}

TEST_F(BaseTest, SameSamplesWithAnotherTimeAreRefused) {
  write_file(path(), pattern(1, 10000));
  const BaseRow recorded = record();
  timespec times[2]{{.tv_sec = 1000, .tv_nsec = 0}, {.tv_sec = 2000, .tv_nsec = 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path().c_str(), times, 0), 0);
  const BaseVerdict verdict = judge(recorded);
  EXPECT_EQ(verdict.kind, BaseVerdict::Kind::refused);
  EXPECT_NE(verdict.reason.find("--accept-changed-base"), std::string::npos);
  EXPECT_NE(verdict.reason.find("full comparison"), std::string::npos);
  EXPECT_EQ(judge(recorded, true).kind, BaseVerdict::Kind::same_content);
}

TEST_F(BaseTest, RenamedBaseIsUnchangedAndTheNewPathIsToBeRecorded) {
  write_file(path(), pattern(1, 10000));
  BaseRow recorded = record();
  recorded.path = "/elsewhere/base.img";
  const BaseVerdict verdict = judge(recorded);
  EXPECT_EQ(verdict.kind, BaseVerdict::Kind::unchanged);
  EXPECT_EQ(verdict.row.path, path());
}

}  // namespace
}  // namespace cowfs::test
