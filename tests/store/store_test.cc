#include "store/store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <thread>

#include "tests/store/support.h"

namespace cowfs::test {
namespace {

class StoreTest : public StoreFixture {
 protected:
  StoreTest() {
    make_base(pattern(1, 50'000));
    open();
  }
  uint64_t create(const std::string& name, bool empty = false) {
    Store::NewImage wanted;
    wanted.name = name;
    wanted.empty = empty;
    return store_->create(wanted)->id();
  }
  void rename(const std::string& from, const std::string& to,
              Store::Rename how = Store::Rename::replace) {
    store_->rename(from, to, how);
  }
  [[nodiscard]] std::string names() const {
    std::string text;
    for (const Store::Entry& entry : store_->list(0, 1000)) text += entry.name + " ";
    return text;
  }
  [[nodiscard]] std::vector<std::string> cow_files() const {
    return names_in(store_path() + "/layers");
  }
  uint64_t id_of(const std::string& name) const { return store_->find(name)->id(); }
};

TEST_F(StoreTest, FreshStoreIsForItsOwnerOnly) {
  struct stat status {};
  ASSERT_EQ(::stat(store_path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0700U);
  write(*use("a"), 0, filled(10, 1));
  store_->find("a")->flush();
  for (const char* name :
       {"catalog.db", "catalog.db-wal", "catalog.db-shm", "lock", "layers/1.cow"}) {
    ASSERT_EQ(::stat((store_path() + "/" + name).c_str(), &status), 0) << name;
    EXPECT_EQ(status.st_mode & 0777U, 0600U) << name;
  }
}

TEST_F(StoreTest, FactsAreWhatItWasMadeWith) {
  const StoreFacts& facts = store_->facts();
  EXPECT_EQ(facts.directory, store_path());
  EXPECT_EQ(facts.base_path, base_path());
  EXPECT_EQ(facts.base_size, 50'000U);
  EXPECT_EQ(facts.chunk_size, 4096U);
  EXPECT_EQ(facts.policy, "sparse");
  EXPECT_EQ(facts.format_version, current_schema().version);
  EXPECT_EQ(facts.uuid.size(), 36U);
  EXPECT_EQ(facts.uuid[14], '4');
}

TEST_F(StoreTest, CreatedImagesAreFoundByNameAndNumber) {
  const uint64_t id = create("a");
  EXPECT_GE(id, 2U);
  EXPECT_EQ(store_->find("a")->id(), id);
  EXPECT_EQ(store_->find(id), store_->find("a"));
  EXPECT_EQ(store_->find("b"), nullptr);
  EXPECT_EQ(store_->find(uint64_t{77}), nullptr);
  EXPECT_EQ(store_->image_count(), 1U);
}

TEST_F(StoreTest, CreatedImageIsThereAfterACrash) {
  const uint64_t id =
      store_->create({.name = "a", .empty = false, .size = 7, .mode = 0640, .uid = 5, .gid = 6})
          ->id();
  reopen_after_crash();
  const auto image = store_->find("a");
  ASSERT_NE(image, nullptr);
  EXPECT_EQ(image->id(), id);
  EXPECT_EQ(image->size(), 7U);
  EXPECT_EQ(image->attributes().mode, 0640U);
  EXPECT_EQ(image->attributes().uid, 5U);
  EXPECT_EQ(image->attributes().gid, 6U);
  EXPECT_GT(image->attributes().btime_ns, 0);
}

TEST_F(StoreTest, TakenAndBadNamesAreRefused) {
  create("a");
  EXPECT_EQ(error_of([&] { create("a"); }).code(), EEXIST);
  EXPECT_EQ(error_of([&] { create("a/b"); }).code(), EINVAL);
  EXPECT_EQ(error_of([&] { create(".snapshots"); }).code(), EINVAL);
  EXPECT_EQ(error_of([&] { rename("a", "x@y"); }).code(), EINVAL);
  EXPECT_EQ(names(), "a ");
}

TEST_F(StoreTest, TooLargeImageIsRefused) {
  EXPECT_EQ(error_of([&] {
              store_->create({.name = "a", .empty = false, .size = kMaxImageSize + 1});
            }).code(),
            EFBIG);
}

TEST_F(StoreTest, NumbersAreStableAndNeverUsedAgain) {
  const uint64_t a = create("a");
  const uint64_t b = create("b");
  store_->remove("b");
  reopen();
  EXPECT_EQ(id_of("a"), a);
  const uint64_t c = create("c");
  EXPECT_GT(c, b);
  store_->remove("c");
  reopen_after_crash();
  EXPECT_GT(create("d"), c);
}

TEST_F(StoreTest, ListGoesOnAfterANumber) {
  for (int i = 0; i < 10; ++i) create("image" + std::to_string(i));
  store_->remove("image4");
  std::string seen;
  uint64_t after = 0;
  for (;;) {
    const auto entries = store_->list(after, 2);
    if (entries.empty()) break;
    EXPECT_LE(entries.size(), 2U);
    for (const auto& entry : entries) {
      seen += entry.name.back();
      EXPECT_GT(entry.image->id(), after);
      after = entry.image->id();
    }
  }
  EXPECT_EQ(seen, "012356789");
}

TEST_F(StoreTest, RemovedImageAndItsFileAreGone) {
  { write(*use("a"), 0, filled(10, 1)); }
  store_->find("a")->use()->flush();
  EXPECT_EQ(cow_files().size(), 1U);
  store_->remove("a");
  EXPECT_EQ(store_->find("a"), nullptr);
  EXPECT_TRUE(cow_files().empty());
  EXPECT_EQ(error_of([&] { store_->remove("a"); }).code(), ENOENT);
  reopen_after_crash();
  EXPECT_EQ(names(), "");
}

TEST_F(StoreTest, RemovedNameCanBeUsedAtOnce) {
  { write(*use("a"), 0, filled(10, 1)); }
  store_->remove("a");
  EXPECT_EQ(content(*use("a")), base_content_);
}

TEST_F(StoreTest, UnlinkedImageInUseLivesOn) {
  uint64_t id = 0;
  {
    const auto image = use("a");
    id = image->id();
    write(*image, 0, filled(10, 1));
    store_->remove("a");
    EXPECT_EQ(store_->find("a"), nullptr);
    EXPECT_NE(store_->find(id), nullptr);
    EXPECT_EQ(names(), "");
    EXPECT_EQ(store_->image_count(), 0U);
    write(*image, 5, filled(10, 2));
    image->flush();
    EXPECT_EQ(content(*image, 5, 10), filled(10, 2));
    const auto second = store_->find(id)->use();  // another handle of the same file
    EXPECT_EQ(cow_files().size(), 1U);
    create("a");
    EXPECT_NE(id_of("a"), id);
  }
  EXPECT_EQ(store_->find(id), nullptr);
  EXPECT_TRUE(cow_files().empty());
}

TEST_F(StoreTest, UnlinkedImageInUseIsFreedAfterACrash) {
  std::shared_ptr<Image> keep;
  {
    auto image = use("a");
    write(*image, 0, filled(10, 1));
    image->flush();
    store_->remove("a");
    // The server dies here: nobody releases the image.
    image->acquire();
  }
  crash();
  EXPECT_EQ(cow_files().size(), 1U);
  open();
  EXPECT_TRUE(cow_files().empty());
  EXPECT_TRUE(store_->list(0, 10).empty());
  EXPECT_TRUE(summarize_store(store_path()).images.empty());
}

TEST_F(StoreTest, FreedImageCannotBeUsed) {
  create("a");
  const auto image = store_->find("a");
  store_->remove("a");
  EXPECT_EQ(error_of([&] { static_cast<void>(image->use()); }).code(), ENOENT);
}

TEST_F(StoreTest, FailedRemoveLeavesTheImage) {
  const uint64_t id = create("a");
  run_sql(catalog_path(),
          "CREATE TRIGGER t BEFORE DELETE ON image BEGIN SELECT RAISE(ABORT, 'fault'); END");
  EXPECT_THROW(store_->remove("a"), Error);
  EXPECT_EQ(content(*use("a")), base_content_);
  EXPECT_EQ(id_of("a"), id);
}

TEST_F(StoreTest, FailedRemoveOfAnImageInUseLeavesItAfterItsLastUse) {
  create("a");
  run_sql(catalog_path(),
          "CREATE TRIGGER t BEFORE UPDATE OF name ON image WHEN new.name IS NULL "
          "BEGIN SELECT RAISE(ABORT, 'fault'); END");
  auto image = std::make_optional(use("a"));
  EXPECT_THROW(store_->remove("a"), Error);
  image.reset();
  EXPECT_EQ(content(*use("a")), base_content_);
}

TEST_F(StoreTest, LastUseThatEndsDuringAFailedRemoveFreesNothing) {
  // The release comes between the mark of the removal and its failure, and waits for it.
  run_sql(catalog_path(),
          "CREATE TRIGGER t BEFORE UPDATE OF name ON image WHEN new.name IS NULL "
          "BEGIN SELECT RAISE(ABORT, 'fault'); END");
  for (int round = 0; round < 300; ++round) {
    auto image = std::make_optional(use("a"));
    std::atomic<bool> go = false;
    std::thread releaser([&] {
      while (!go) {
      }
      image.reset();
    });
    go = true;
    bool removed = false;
    try {
      store_->remove("a");
      removed = true;  // it was idle by then
    } catch (const Error&) {
    }
    releaser.join();
    EXPECT_EQ(store_->find("a") == nullptr, removed) << round;
    if (!removed && store_->find("a") == nullptr) break;
  }
}

TEST_F(StoreTest, FileThatCannotBeRemovedIsNoFailure) {
  { write(*use("a"), 0, filled(10, 1)); }
  faults_.set([](const std::string&, FileOperation operation, uint64_t, uint64_t) {
    return operation == FileOperation::unlink ? EIO : 0;
  });
  store_->remove("a");
  EXPECT_EQ(store_->find("a"), nullptr);
  faults_.clear();
  reopen_after_crash();
  EXPECT_TRUE(cow_files().empty());
}

TEST_F(StoreTest, RenameKeepsNumberAndContent) {
  const uint64_t id = create("a");
  { write(*use("a"), 0, filled(10, 1)); }
  rename("a", "b");
  EXPECT_EQ(store_->find("a"), nullptr);
  EXPECT_EQ(id_of("b"), id);
  reopen_after_crash();
  EXPECT_EQ(id_of("b"), id);
  EXPECT_EQ(names(), "b ");
}

TEST_F(StoreTest, RenameReplacesTheTarget) {
  const uint64_t a = create("a");
  const uint64_t b = create("b");
  { write(*use("b"), 0, filled(10, 1)); }
  store_->find("b")->use()->flush();
  rename("a", "b");
  EXPECT_EQ(id_of("b"), a);
  EXPECT_EQ(store_->find(b), nullptr);
  EXPECT_TRUE(cow_files().empty());
  reopen_after_crash();
  EXPECT_EQ(names(), "b ");
  EXPECT_EQ(id_of("b"), a);
}

TEST_F(StoreTest, ReplacedTargetInUseLivesOn) {
  create("a");
  const uint64_t b = create("b");
  {
    const auto image = use("b");
    rename("a", "b");
    EXPECT_NE(store_->find(b), nullptr);
    EXPECT_EQ(content(*image), base_content_);
  }
  EXPECT_EQ(store_->find(b), nullptr);
  EXPECT_EQ(store_->image_count(), 1U);
}

TEST_F(StoreTest, NoReplaceRefusesATakenName) {
  create("a");
  create("b");
  EXPECT_EQ(error_of([&] { rename("a", "b", Store::Rename::no_replace); }).code(), EEXIST);
  EXPECT_EQ(error_of([&] { rename("a", "a", Store::Rename::no_replace); }).code(), EEXIST);
  rename("a", "c", Store::Rename::no_replace);
  EXPECT_EQ(names(), "c b ");
}

TEST_F(StoreTest, ExchangeSwapsNames) {
  const uint64_t a = create("a");
  const uint64_t b = create("b");
  rename("a", "b", Store::Rename::exchange);
  EXPECT_EQ(id_of("a"), b);
  EXPECT_EQ(id_of("b"), a);
  EXPECT_EQ(error_of([&] { rename("a", "none", Store::Rename::exchange); }).code(), ENOENT);
  rename("a", "a", Store::Rename::exchange);
  reopen_after_crash();
  EXPECT_EQ(id_of("a"), b);
  EXPECT_EQ(id_of("b"), a);
}

TEST_F(StoreTest, RenameOfNothingIsAnError) {
  EXPECT_EQ(error_of([&] { rename("none", "b"); }).code(), ENOENT);
}

TEST_F(StoreTest, RenameToItselfDoesNothing) {
  const uint64_t id = create("a");
  rename("a", "a");
  EXPECT_EQ(id_of("a"), id);
}

TEST_F(StoreTest, FailedRenameChangesNothing) {
  const uint64_t a = create("a");
  const uint64_t b = create("b");
  run_sql(catalog_path(),
          "CREATE TRIGGER t BEFORE DELETE ON image BEGIN SELECT RAISE(ABORT, 'fault'); END");
  EXPECT_THROW(rename("a", "b"), Error);
  EXPECT_EQ(id_of("a"), a);
  EXPECT_EQ(id_of("b"), b);
  EXPECT_EQ(content(*use("b")), base_content_);
  run_sql(catalog_path(), "DROP TRIGGER t");
  reopen_after_crash();
  EXPECT_EQ(id_of("a"), a);
  EXPECT_EQ(id_of("b"), b);
}

TEST_F(StoreTest, OwnBytesAreTheSum) {
  { write(*use("a"), 0, filled(4096, 1)); }
  { write(*use("b"), 0, filled(8192, 1)); }
  EXPECT_EQ(store_->own_bytes(), 3U * 4096);
}

TEST_F(StoreTest, SummaryIsThereWhileItIsOpen) {
  create("a");
  const StoreSummary summary = summarize_store(store_path());
  EXPECT_EQ(summary.facts.chunk_size, 4096U);
  ASSERT_EQ(summary.images.size(), 1U);
  EXPECT_EQ(summary.images[0].name, "a");
  ASSERT_TRUE(summary.holder);
  reopen();
  crash();
  EXPECT_FALSE(summarize_store(store_path()).holder);
  EXPECT_EQ(summarize_store(store_path()).images.size(), 1U);
}

TEST_F(StoreTest, CowFileIsNamedOnceThereIsOne) {
  const auto image = use("a");
  EXPECT_FALSE(cow_file(store_path(), image->layer_id()));
  write(*image, 0, filled(10, 1));
  EXPECT_EQ(cow_file(store_path(), image->layer_id()), image->cow_path());
}

TEST_F(StoreTest, ThreadsCreateRenameAndRemove) {
  std::vector<std::thread> threads;
  for (int id = 0; id < 4; ++id) {
    threads.emplace_back([&, id] {
      for (int round = 0; round < 15; ++round) {
        const std::string name = "t" + std::to_string(id);
        const auto image = store_->create({.name = name, .empty = false, .size = std::nullopt});
        {
          const auto use = image->use();
          write(*use, 0, filled(10, id));
          if (round % 3 == 0) store_->remove(name);
          EXPECT_EQ(content(*use, 0, 10), filled(10, id));
        }
        if (round % 3 == 1) store_->remove(name);
        if (round % 3 == 2) {
          store_->rename(name, "shared", Store::Rename::replace);
          static_cast<void>(store_->list(0, 100));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(names(), "shared ");
}

}  // namespace
}  // namespace cowfs::test
