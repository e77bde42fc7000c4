// Backing files: which are opened, how they are read, and that each has to stay as it was.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "store/base_verdict.h"
#include "store/catalog.h"
#include "tests/store/image_maker.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

namespace fs = std::filesystem;

class BaseChainTest : public ::testing::Test {
 protected:
  BaseChainTest() { fs::create_directory(images()); }

  [[nodiscard]] std::string images() const { return directory_ / "images"; }
  [[nodiscard]] std::string at(const std::string& name) const { return images() + "/" + name; }
  [[nodiscard]] std::string base() const { return at("base"); }

  static BaseOptions making() {
    BaseOptions options;
    options.find_formats = true;
    return options;
  }
  /// An overlay that has its second cluster from itself.
  void overlay(const std::string& path, const std::string& backing,
               const std::string& format = "raw", uint64_t size = 4096) const {
    write_file(path, MadeQcow2{.size = size,
                               .backing = backing,
                               .backing_format = format,
                               .clusters = {{1, {.bytes = filled(512, 9)}}}}
                         .file());
  }
  void raw(const std::string& path, int value = 1, size_t size = 4096) const {
    write_file(path, filled(size, value));
  }
  void expect_refusal(int code, const std::string& words,
                      const BaseOptions& options = making()) const {
    const Error error = error_of([&] { const Base opened(base(), options); });
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_EQ(std::string(error.what()).find("base " + base() + ": "), 0U) << error.what();
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
  void expect_opens(size_t files, const BaseOptions& options = making()) const {
    const Base opened(base(), options);
    EXPECT_EQ(opened.files().size(), files);
    Bytes bytes(opened.size());
    opened.read(bytes, 0);
    EXPECT_EQ(bytes[0], std::byte{1});
    EXPECT_EQ(bytes[600], std::byte{9});
  }

  TempDir directory_;
};

TEST_F(BaseChainTest, ABackingFileBesideTheImageIsRead) {
  raw(at("below"));
  overlay(base(), "below");
  expect_opens(2);
  overlay(base(), at("below"));
  expect_opens(2);
  fs::create_directory(at("deeper"));
  raw(at("deeper/below"));
  overlay(base(), "deeper/below");
  expect_opens(2);
}

TEST_F(BaseChainTest, OneThatIsShorterReadsAsZerosBeyondItsEnd) {
  raw(at("below"), 1, 700);
  overlay(base(), "below");
  const Base opened(base(), making());
  Bytes bytes(4096);
  opened.read(bytes, 0);
  Bytes want = filled(4096, 0);
  std::fill_n(want.begin(), 512, std::byte{1});
  std::fill_n(want.begin() + 512, 512, std::byte{9});
  EXPECT_EQ(bytes, want);
}

TEST_F(BaseChainTest, EachFormatCanBeBelowEachOther) {
  raw(at("a"));
  overlay(at("b"), "a");
  write_file(at("c"), MadeQcow1{.size = 4096, .backing = "b"}.file());
  overlay(base(), "c", "qcow");
  expect_opens(4);
}

TEST_F(BaseChainTest, OutsideTheDirectoryIsRefusedUnlessAllowed) {
  raw(directory_ / "outside");
  const std::vector<std::string> names{"../outside", directory_ / "outside", "x/../../outside",
                                       "../images/../outside"};
  for (const std::string& name : names) {
    overlay(base(), name);
    expect_refusal(EACCES, "outside the directory");
    BaseOptions options = making();
    options.allow_backing = {directory_ / "nothing", directory_ / "out"};
    expect_refusal(EACCES, "--allow-backing", options);
    options.allow_backing = {directory_ / "outside"};
    expect_opens(2, options);
    options.allow_backing = {directory_.path()};
    expect_opens(2, options);
  }
}

TEST_F(BaseChainTest, ShadowIsRefusedWhetherItIsThereOrNot) {
  for (const char* name : {"/etc/shadow", "/etc/no such file", "/dev/null", "/proc/self/mem"}) {
    overlay(base(), name);
    expect_refusal(EACCES, "outside the directory");
  }
}

TEST_F(BaseChainTest, ALinkThatLeadsOutIsRefused) {
  raw(directory_ / "outside");
  fs::create_symlink(directory_ / "outside", at("link"));
  overlay(base(), "link");
  expect_refusal(EACCES, "outside the directory");
  fs::create_directory_symlink(directory_.path(), at("up"));
  overlay(base(), "up/outside");
  expect_refusal(EACCES, "outside the directory");
  raw(at("inside"));
  fs::remove(at("link"));
  fs::create_symlink("inside", at("link"));
  overlay(base(), "link");
  expect_opens(2);
}

TEST_F(BaseChainTest, TheDirectoryIsThatOfTheFileAndNotOfALinkToIt) {
  fs::create_directory(directory_ / "elsewhere");
  raw(directory_ / "elsewhere/below");
  overlay(directory_ / "elsewhere/real", "below");
  fs::create_symlink(directory_ / "elsewhere/real", base());
  expect_opens(2);
}

TEST_F(BaseChainTest, NamesThatAreNoPathsAreRefusedByName) {
  for (const char* name : {"json:{\"driver\":\"file\"}", "nbd://host/x", "file:/etc/shadow",
                           "fat:floppy", "nbd:unix:/run/x"}) {
    overlay(base(), name);
    expect_refusal(EOPNOTSUPP, std::string(name).substr(0, std::string(name).find(':') + 1));
  }
  overlay(base(), std::string("be\0low", 6));
  expect_refusal(EUCLEAN, "zero byte");
  raw(at("with:colon"));
  overlay(base(), "./with:colon");
  expect_opens(2);
}

TEST_F(BaseChainTest, NamesOf1023BytesAreTaken) {
  std::string name;
  while (name.size() < 1018) name += "./";
  raw(at("below"));
  name += "below";
  ASSERT_EQ(name.size(), 1023U);
  const auto make = [&](const std::string& backing) {
    write_file(base(), MadeQcow2{.cluster_bits = 12,
                                 .size = 4096,
                                 .backing = backing,
                                 .backing_format = "raw",
                                 .clusters = {}}
                           .file());
  };
  make(name);
  EXPECT_EQ(Base(base(), making()).files().size(), 2U);
  make("." + name.substr(0, 1023));
  expect_refusal(EUCLEAN, "1023 are the most");
  make(std::string(1023, 'n'));
  expect_refusal(ENAMETOOLONG, "");
}

TEST_F(BaseChainTest, ANameOutsideTheFirstClusterIsRefused) {
  raw(at("below"));
  overlay(base(), "below");
  Bytes file = read_file(base());
  file[14] = std::byte{1};  // of the offset
  file[15] = std::byte{255};
  write_file(base(), file);
  expect_refusal(EUCLEAN, "outside the first cluster");
}

TEST_F(BaseChainTest, OnesThatAreNoImagesAreRefused) {
  overlay(base(), "below");
  expect_refusal(ENOENT, "below: is missing; put it back, or, if it was moved");
  ASSERT_EQ(::mkfifo(at("below").c_str(), 0600), 0);
  expect_refusal(EINVAL, "neither a regular file nor a block device");
  overlay(base(), ".");
  expect_refusal(EISDIR, "directory");
}

TEST_F(BaseChainTest, LoopsAndLongChainsAreRefused) {
  overlay(base(), "base", "qcow2");
  expect_refusal(ELOOP, "a loop");
  overlay(at("b"), "base", "qcow2");
  overlay(base(), "b", "qcow2");
  expect_refusal(ELOOP, "a loop");

  raw(at("0"));
  for (int i = 1; i < 63; ++i)
    overlay(at(std::to_string(i)), std::to_string(i - 1), i == 1 ? "raw" : "qcow2");
  overlay(base(), "62", "qcow2");
  expect_opens(64);
  overlay(at("63"), "62", "qcow2");
  overlay(base(), "63", "qcow2");
  expect_refusal(ELOOP, "64 files");
}

TEST_F(BaseChainTest, FormatsOfOthersAreRefusedByName) {
  raw(at("below"));
  overlay(base(), "below", "vmdk");
  expect_refusal(EOPNOTSUPP, "'vmdk'");
  overlay(base(), "below", "host_device");
  expect_opens(2);
}

// ---- formats are found once (CVE-2008-2004) ----------------------------------------------------

TEST_F(BaseChainTest, AHeaderWrittenIntoARawBackingFileChangesNothing) {
  overlay(at("evil"), directory_ / "secret");
  overlay(base(), "evil");
  const Base opened(base(), making());
  ASSERT_EQ(opened.files().size(), 2U);
  EXPECT_EQ(opened.files()[1]->format, BaseFormat::raw);
}

TEST_F(BaseChainTest, AnUnnamedFormatIsFoundWhenAStoreIsMadeAndNeverAgain) {
  raw(at("below"));
  overlay(base(), "below", "");
  BaseRow row;
  {
    const Base opened(base(), making());
    EXPECT_EQ(opened.files()[1]->format, BaseFormat::raw);
    row = opened.identity();
  }
  overlay(at("below"), directory_ / "secret");
  const Base again(base(), options_of(row));
  EXPECT_EQ(again.files().size(), 2U);
  EXPECT_EQ(again.files()[1]->format, BaseFormat::raw);
  BaseOptions options;
  options.format = BaseFormat::qcow2;
  expect_refusal(EINVAL, "without its format", options);
}

TEST_F(BaseChainTest, WhatIsRecordedIsAllowedAgain) {
  raw(directory_ / "outside");
  overlay(base(), "../outside");
  BaseOptions options = making();
  options.allow_backing = {directory_.path()};
  const BaseRow row = Base(base(), options).identity();
  ASSERT_EQ(row.backing.size(), 1U);
  EXPECT_EQ(row.backing[0].path, directory_ / "outside");
  expect_opens(2, options_of(row));
  overlay(base(), "../other");
  expect_refusal(EACCES, "outside", options_of(row));
}

TEST_F(BaseChainTest, AFormatThatIsGivenCounts) {
  overlay(base(), "/etc/shadow");
  BaseOptions options = making();
  options.format = BaseFormat::raw;
  const Base opened(base(), options);
  EXPECT_EQ(opened.files().size(), 1U);
  EXPECT_EQ(opened.size(), read_file(base()).size());
}

// ---- each file stays as it was (I1) ------------------------------------------------------------

class ChainRecordTest : public BaseChainTest {
 protected:
  ChainRecordTest() {
    raw(at("a"), 1, 10'000);
    overlay(at("b"), "a");
    overlay(base(), "b", "qcow2");
    recorded_ = Base(base(), making()).identity_and_fingerprints();
  }
  [[nodiscard]] BaseVerdict judge(bool accept = false) const {
    return judge_base(Base(base(), options_of(recorded_)), recorded_, accept);
  }
  BaseRow recorded_;
};

TEST_F(ChainRecordTest, UnchangedFilesAreAccepted) {
  EXPECT_EQ(judge().kind, BaseVerdict::Kind::unchanged);
  EXPECT_EQ(judge().row.backing[1].fingerprint, recorded_.backing[1].fingerprint);
}

TEST_F(ChainRecordTest, AChangedFileIsRefusedByName) {
  for (const char* name : {"a", "b"}) {
    const Bytes before = read_file(at(name));
    Bytes changed = before;
    changed[changed.size() - 1] ^= std::byte{1};
    write_file(at(name), changed);
    const BaseVerdict verdict = judge();
    EXPECT_EQ(verdict.kind, BaseVerdict::Kind::refused);
    EXPECT_NE(verdict.reason.find("its backing file " + at(name)), std::string::npos)
        << verdict.reason;
    EXPECT_EQ(judge(true).kind, BaseVerdict::Kind::same_content);
    fs::remove(at(name));
    write_file(at(name), before);
    EXPECT_EQ(judge().kind, BaseVerdict::Kind::refused) << "the time is another";
    recorded_ = judge(true).row;
    EXPECT_EQ(judge().kind, BaseVerdict::Kind::unchanged);
  }
}

TEST_F(ChainRecordTest, CopiesThatKeepTheTimesAreAccepted) {
  fs::create_directory(directory_ / "moved");
  for (const char* name : {"a", "b", "base"}) {
    const fs::path to = directory_ / "moved" / fs::path(name);
    fs::copy_file(at(name), to);
    fs::last_write_time(to, fs::last_write_time(at(name)));
  }
  const Base moved(directory_ / "moved/base", options_of(recorded_));
  const BaseVerdict verdict = judge_base(moved, recorded_, false);
  EXPECT_EQ(verdict.kind, BaseVerdict::Kind::same_content) << verdict.reason;
  EXPECT_EQ(verdict.row.backing[1].path, directory_ / "moved/a");
}

TEST_F(ChainRecordTest, AnotherNumberOfFilesIsRefused) {
  write_file(at("c"), MadeQcow2{.size = 4096, .clusters = {}}.file());
  overlay(base(), "c", "qcow2");
  const BaseVerdict verdict = judge();
  EXPECT_EQ(verdict.kind, BaseVerdict::Kind::refused);
  EXPECT_NE(verdict.reason.find("2 backing files"), std::string::npos) << verdict.reason;
  recorded_ = judge(true).row;
  EXPECT_EQ(recorded_.backing.size(), 1U);
}

TEST_F(ChainRecordTest, TheChecksumIsOfTheDisk) {
  const auto nothing = [](uint64_t) {};
  const Base opened(base(), options_of(recorded_));
  Bytes disk(opened.size());
  opened.read(disk, 0);
  write_file(at("flat"), disk);
  EXPECT_EQ(opened.checksum(nothing), Base(at("flat")).checksum(nothing));
}

}  // namespace
}  // namespace cowfs::test
