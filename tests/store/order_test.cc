// The order of a flush and of taking away (I3, I5, I12), watched through the fault hook: at each
// system call on data the catalog is read by another connection, as a crash at that point would
// leave it.

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <mutex>

#include "store/image.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

struct Event {
  std::string what;  ///< "sync cow", "sync layers", "punch"
  std::string map;   ///< of the first chunks, as the catalog has it at that time
  bool has_file;     ///< whether the catalog names the CoW file
};

class OrderTest : public StoreFixture {
 protected:
  OrderTest() {
    make_base(pattern(1, 16 * 4096));
    open();
  }
  void watch(uint64_t layer) {
    faults_.set(
        [this, layer](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
          const bool cow = path.ends_with(".cow");
          if (operation == FileOperation::sync) note(cow ? "sync cow" : "sync layers", layer);
          if (operation == FileOperation::punch) note("punch", layer);
          return 0;
        });
  }
  void note(const std::string& what, uint64_t layer) {
    Catalog catalog(catalog_path(), Database::Mode::read_only);
    bool has_file = false;
    for (const LayerRow& row : catalog.layers()) has_file |= row.id == layer && row.has_file;
    events_.push_back({what, map_on_disk(catalog_path(), layer, 4), has_file});
  }
  [[nodiscard]] std::string sequence() const {
    std::string text;
    for (const Event& event : events_) text += event.what + "; ";
    return text;
  }
  std::vector<Event> events_;
};

TEST_F(OrderTest, NewFileAndItsFolderAreSyncedBeforeTheFirstRowNamesIt) {
  const auto image = use("a");
  write(*image, 0, filled(4096, 1));
  watch(image->layer_id());
  image->flush();
  ASSERT_EQ(sequence(), "sync cow; sync layers; ");
  for (const Event& event : events_) {
    EXPECT_FALSE(event.has_file);
    EXPECT_EQ(event.map, "....");
  }
  note("end", image->layer_id());
  EXPECT_TRUE(events_.back().has_file);
  EXPECT_EQ(events_.back().map, "p...");
}

TEST_F(OrderTest, DataIsSyncedBeforeTheMapSaysSo) {
  const auto image = use("a");
  write(*image, 0, filled(4096, 1));
  image->flush();
  write(*image, 4096, filled(4096, 1));
  watch(image->layer_id());
  image->flush();
  ASSERT_EQ(sequence(), "sync cow; ");
  EXPECT_EQ(events_[0].map, "p...");
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 4), "pp..");
}

TEST_F(OrderTest, WriteDuringTheSyncIsNotInTheCommitThatWaitsForIt) {
  const auto image = use("a");
  write(*image, 0, filled(4096, 1));
  bool once = true;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    if (once && path.ends_with(".cow") && operation == FileOperation::sync) {
      once = false;
      write(*image, 4096, filled(4096, 2));  // the sync may not see it
    }
    return 0;
  });
  image->flush();
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 4), "p...");
  image->flush();
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 4), "pp..");
}

TEST_F(OrderTest, FileThatIsMadeDuringACommitIsNotNamedByIt) {
  // The commit has nothing to sync when it looks; the file comes before it publishes.
  const auto image = use("a");
  image->make_zero(0, 4096);
  image->extend(1 << 20);
  image->reserve(0, 4096);  // makes the file, writes nothing
  watch(image->layer_id());
  image->flush();
  Catalog catalog(catalog_path(), Database::Mode::read_only);
  const bool synced = sequence().find("sync cow; sync layers; ") != std::string::npos;
  EXPECT_TRUE(synced || !catalog.layers().at(0).has_file);
}

TEST_F(OrderTest, SpaceIsGivenBackAfterTheCommit) {
  const auto image = use("a");
  write(*image, 0, filled(4 * 4096, 1));
  image->flush();
  image->make_zero(4096, 4096);
  watch(image->layer_id());
  image->flush();
  ASSERT_EQ(sequence(), "punch; ");
  EXPECT_EQ(events_[0].map, "pzpp");
}

TEST_F(OrderTest, SpaceIsNotGivenBackIfTheCommitThatFreesItFails) {
  // I5: the catalog still says present, and would after a crash.
  const Bytes written = filled(4 * 4096, 1);
  using Change = std::function<void(Image&)>;
  for (const Change& change : {Change([](Image& image) {
                                 image.make_zero(4096, 2 * 4096);
                                 image.flush();
                               }),
                               Change([](Image& image) { image.resize(4096); })}) {
    {
      const auto image = use("a");
      write(*image, 0, written);
      image->flush();
      run_sql(catalog_path(),
              "CREATE TRIGGER t BEFORE INSERT ON map_page BEGIN SELECT RAISE(ABORT, 'x'); END");
      events_.clear();
      watch(image->layer_id());
      EXPECT_EQ(error_of([&] { change(*image); }).code(), EIO);
      faults_.clear();
      EXPECT_EQ(sequence().find("punch"), std::string::npos) << sequence();
      run_sql(catalog_path(), "DROP TRIGGER t");
    }
    reopen_after_crash();
    EXPECT_EQ(content(*use("a"), 0, 4 * 4096), written);
    store_->remove("a");
  }
}

TEST_F(OrderTest, ShrinkCommitsBeforeItPunches) {
  const auto image = use("a");
  write(*image, 0, filled(4 * 4096, 1));
  image->flush();
  watch(image->layer_id());
  image->resize(4096);
  ASSERT_EQ(sequence(), "punch; ");
  EXPECT_EQ(events_[0].map, "p...");
}

TEST_F(OrderTest, RemoveForgetsBeforeTheFileGoes) {
  { write(*use("a"), 0, filled(4096, 1)); }
  store_->find("a")->use()->flush();
  size_t images = 99;
  faults_.set([&](const std::string&, FileOperation operation, uint64_t, uint64_t) {
    if (operation == FileOperation::unlink) {
      images = Catalog(catalog_path(), Database::Mode::read_only).images().size();
    }
    return 0;
  });
  store_->remove("a");
  EXPECT_EQ(images, 0U);
}

TEST_F(OrderTest, ChunkThatIsPresentAgainIsNotPunched) {
  const auto image = use("a");
  write(*image, 0, filled(4 * 4096, 1));
  image->flush();
  image->make_zero(0, 4 * 4096);
  write(*image, 4096, filled(4096, 2));
  image->flush();
  EXPECT_EQ(content(*image, 0, 4 * 4096 + 0).size(), 4U * 4096);
  EXPECT_EQ(content(*image, 4096, 4096), filled(4096, 2));
  EXPECT_EQ(image->own_bytes(), 4096U);
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 4), "zpzz");
}

TEST_F(OrderTest, ChunkThatTheCatalogCallsPresentIsNeverPunched) {
  // Freed, present again when a commit copies it, and freed once more before that commit gives
  // back what was freed the first time: the catalog says present now, and punching would be damage.
  const auto image = use("a");
  write(*image, 0, filled(4096, 1));
  image->flush();
  image->make_zero(0, 4096);
  write(*image, 0, filled(4096, 2));
  bool once = true;
  faults_.set([&](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    if (once && path.ends_with(".cow") && operation == FileOperation::sync) {
      once = false;
      image->make_zero(0, 4096);
    }
    return 0;
  });
  image->flush();
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 1), "p");
  EXPECT_EQ(image->own_bytes(), 4096U);
  image->flush();
  EXPECT_EQ(map_on_disk(catalog_path(), image->layer_id(), 1), "z");
  EXPECT_EQ(image->own_bytes(), 0U);
}

TEST_F(OrderTest, OverwriteInPlaceIsSyncedWithoutACommit) {
  const auto image = use("a");
  write(*image, 0, filled(4096, 1));
  image->flush();
  write(*image, 100, filled(10, 2));
  watch(image->layer_id());
  const Bytes log = read_file(catalog_path() + "-wal");
  image->flush();
  EXPECT_EQ(read_file(catalog_path() + "-wal"), log);
  EXPECT_EQ(sequence(), "sync cow; ");
}

}  // namespace
}  // namespace cowfs::test
