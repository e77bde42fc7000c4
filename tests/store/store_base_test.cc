// What a store records of a base of QEMU's formats, and holds on to.

#include <gtest/gtest.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/ostream_sink.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <sstream>

#include "store/check.h"
#include "tests/store/image_maker.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

class StoreBaseTest : public StoreFixture {
 protected:
  [[nodiscard]] static MadeQcow2 made() {
    return {.size = 50'000,
            .clusters = {{0, {.bytes = pattern(1, 512)}},
                         {9, {.kind = MadeCluster::Kind::packed, .bytes = filled(512, 7)}}},
            .snapshots = {{"1", "clean"}}};
  }
  [[nodiscard]] static Bytes disk() {
    Bytes bytes(50'000);
    const Bytes first = pattern(1, 512);
    std::copy(first.begin(), first.end(), bytes.begin());
    std::fill_n(bytes.begin() + 9 * 512, 512, std::byte{7});
    return bytes;
  }
  [[nodiscard]] Error refusal(const Store::Options& options) const {
    return error_of([&] { const Store store(options); });
  }
  /// What the store logs when it is opened.
  std::string log_of_opening() {
    std::ostringstream text;
    Store::Options how = options();
    how.log = std::make_shared<spdlog::logger>(
        "store", std::make_shared<spdlog::sinks::ostream_sink_mt>(text));
    const Store store(how);
    return text.str();
  }
};

TEST_F(StoreBaseTest, ImagesShowTheDiskAndKeepTheirOwn) {
  write_file(base_path(), made().file());
  open();
  Bytes want = disk();
  {
    const Image::Use image = use("dom1");
    EXPECT_EQ(content(*image), want);
    EXPECT_EQ(image->next_data(512), 9U * 512);
    write(*image, 4700, filled(100, 3));
    std::fill_n(want.begin() + 4700, 100, std::byte{3});
    image->flush();
  }
  reopen();
  EXPECT_EQ(content(*use("dom1")), want);
  EXPECT_EQ(store_->facts().base_format, BaseFormat::qcow2);
  EXPECT_EQ(store_->facts().base_size, 50'000U);
}

TEST_F(StoreBaseTest, AWriteOfWhatTheBaseHasCompressedIsShared) {
  write_file(base_path(), made().file());
  open();
  const Image::Use image = use("copy", true);
  write(*image, 0, disk());
  image->flush();
  EXPECT_EQ(content(*image), disk());
  EXPECT_EQ(map(image, 13), std::string(13, '.'));
}

TEST_F(StoreBaseTest, TheFormatAndTheSnapshotAreFixed) {
  write_file(base_path(), made().file());
  Store::Options how = options();
  how.create = true;
  how.base_snapshot = "clean";
  ASSERT_TRUE(Store(how).close());
  open();  // without saying it again
  EXPECT_EQ(store_->facts().base_snapshot, "clean");
  crash();
  how.base_format = BaseFormat::qcow2;
  EXPECT_TRUE(Store(how).close());
  how.base_snapshot = "other";
  EXPECT_EQ(refusal(how).code(), EINVAL);
  how.base_snapshot.reset();
  how.base_format = BaseFormat::raw;
  const Error error = refusal(how);
  EXPECT_EQ(error.code(), EINVAL);
  EXPECT_NE(std::string(error.what()).find("as qcow2, not as raw"), std::string::npos);
}

TEST_F(StoreBaseTest, ARawBaseWithAHeaderStaysRawAndTheLogSaysSo) {
  make_base(Bytes(50'000));
  open();
  use("dom1");
  EXPECT_TRUE(store_->close());
  crash();
  MadeQcow2 evil = made();
  evil.backing = "/etc/shadow";
  Bytes file = evil.file();
  file.resize(50'000);
  write_file(base_path(), file);
  Store::Options how = options();
  how.accept_changed_base = true;
  ASSERT_TRUE(Store(how).close());
  open();
  EXPECT_EQ(store_->facts().base_format, BaseFormat::raw);
  EXPECT_EQ(content(*use("dom1")), file);
  crash();
  EXPECT_NE(log_of_opening().find("is read as raw"), std::string::npos);
}

TEST_F(StoreBaseTest, AStoreFromBeforeHasARawBase) {
  const Bytes file = made().file();
  make_base(file);
  Store::Options how = options();
  how.create = true;
  how.base_format = BaseFormat::raw;
  ASSERT_TRUE(Store(how).close());
  run_sql(catalog_path(), kBackToVersion2);
  open();
  EXPECT_EQ(store_->facts().base_format, BaseFormat::raw);
  EXPECT_EQ(store_->facts().base_size, file.size());
  EXPECT_EQ(content(*use("dom1")), file);
  crash();
  EXPECT_NE(log_of_opening().find("is read as raw"), std::string::npos);
}

TEST_F(StoreBaseTest, AChangedBackingFileIsRefused) {
  write_file(directory_ / "below", filled(50'000, 1));
  MadeQcow2 over = made();
  over.backing = "below";
  over.backing_format = "raw";
  write_file(base_path(), over.file());
  open();
  ASSERT_EQ(store_->facts().backing.size(), 1U);
  EXPECT_EQ(store_->facts().backing[0].path, directory_ / "below");
  crash();
  write_file(directory_ / "below", filled(50'000, 2));
  const Error error = refusal(options());
  EXPECT_EQ(error.code(), ESTALE);
  EXPECT_NE(std::string(error.what()).find("its backing file"), std::string::npos) << error.what();
  std::string found;
  CheckOptions check;
  check.receive = [&](const Finding& finding) { found += finding.what; };
  check_store(store_path(), check);
  EXPECT_NE(found.find(base_path() + ": its backing file"), std::string::npos) << found;
  Store::Options how = options();
  how.accept_changed_base = true;
  EXPECT_TRUE(Store(how).close());
  open();
}

TEST_F(StoreBaseTest, ChecksumsAreOfTheDiskAndFindAChange) {
  write_file(directory_ / "below", filled(50'000, 1));
  MadeQcow2 over = made();
  over.backing = "below";
  over.backing_format = "raw";
  write_file(base_path(), over.file());
  open();
  store_->record_base({});
  EXPECT_TRUE(store_->compare_base({}));
  EXPECT_TRUE(store_->close());
  crash();
  EXPECT_TRUE(compare_base(store_path(), std::nullopt, {}));
  Bytes below = filled(50'000, 1);
  below[40'000] = std::byte{2};
  write_file(directory_ / "below", below);
  EXPECT_FALSE(compare_base(store_path(), std::nullopt, {}));
}

TEST_F(StoreBaseTest, WhatIsReadBeforeTheBaseIsReadApart) {
  write_file(base_path(), made().file());
  open();
  crash();
  std::string order;
  Store::Options how = options();
  how.apart = [&](const std::function<std::optional<BaseRow>()>& look) {
    order += "apart ";
    return look();
  };
  how.confine = [&](const Base* base) {
    EXPECT_EQ(base->format(), BaseFormat::qcow2);
    order += "confine";
  };
  const Store store(how);
  EXPECT_EQ(order, "apart confine");
}

}  // namespace
}  // namespace cowfs::test
