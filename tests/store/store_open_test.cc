#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <map>

#include "store/store.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

namespace fs = std::filesystem;

/// A directory, seen read-only at another place; `error` is why it could not be.
class ReadOnlyView {
 public:
  ReadOnlyView(const std::string& directory, std::string point) : point_(std::move(point)) {
    fs::create_directory(point_);
    const char* at = point_.c_str();
    mounted_ = ::mount(directory.c_str(), at, nullptr, MS_BIND, nullptr) == 0;
    const unsigned long flags = MS_REMOUNT | MS_BIND | MS_RDONLY;
    if (!mounted_ || ::mount(nullptr, at, nullptr, flags, nullptr) != 0) error_ = errno;
  }
  ReadOnlyView(const ReadOnlyView&) = delete;
  ReadOnlyView& operator=(const ReadOnlyView&) = delete;
  ~ReadOnlyView() {
    if (mounted_) ::umount2(point_.c_str(), MNT_DETACH);
  }
  [[nodiscard]] int error() const { return error_; }

 private:
  const std::string point_;
  bool mounted_ = false;
  int error_ = 0;
};

class StoreOpenTest : public StoreFixture {
 protected:
  StoreOpenTest() { make_base(pattern(1, 50'000)); }

  /// A store with one image that has a CoW file, closed.
  void make_store() {
    open();
    {
      const auto image = use("a");
      write(*image, 0, filled(10, 1));
    }
    ASSERT_TRUE(store_->close());
    crash();
  }
  Error refusal() {
    return error_of([&] { open(); });
  }
  Error refusal(const Store::Options& options) {
    return error_of([&] { const Store store(options); });
  }
  static bool says(const Error& error, const std::string& text) {
    return std::string(error.what()).find(text) != std::string::npos;
  }
  /// Everything in the store, to see that a refusal changed nothing.
  std::map<std::string, Bytes> snapshot() const {
    std::map<std::string, Bytes> files;
    for (const auto& entry : fs::recursive_directory_iterator(store_path())) {
      const std::string name = entry.path().filename();
      if (entry.is_regular_file() && name != "lock" && !name.ends_with("-shm") &&
          !(name.ends_with("-wal") && entry.file_size() == 0)) {
        files[entry.path()] = read_file(entry.path());
      }
    }
    return files;
  }
};

// A pipe would wait for its other end, and another name of a file would be written over.
TEST_F(StoreOpenTest, WhatLiesInPlaceOfTheReserveIsLeftAlone) {
  make_store();
  const std::string reserve = store_path() + "/reserve";
  fs::remove(reserve);
  ASSERT_EQ(::mkfifo(reserve.c_str(), 0600), 0);
  open();
  store_.reset();
  EXPECT_TRUE(fs::is_fifo(reserve));

  fs::remove(reserve);
  const std::string other = store_path() + "-other";
  write_file(other, pattern(7, 10'000));
  fs::create_hard_link(other, reserve);
  open();
  store_.reset();
  EXPECT_EQ(read_file(other), pattern(7, 10'000));
}

TEST_F(StoreOpenTest, WithoutCreateThereHasToBeOne) {
  Store::Options wanted = options();
  wanted.create = false;
  EXPECT_EQ(refusal(wanted).code(), ENOENT);
  EXPECT_FALSE(fs::exists(store_path()));
  fs::create_directory(store_path());
  EXPECT_EQ(refusal(wanted).code(), ENOENT);
  EXPECT_TRUE(names_in(store_path()).empty());
}

TEST_F(StoreOpenTest, BaseIsFoundThroughTheCatalog) {
  make_store();
  Store::Options wanted = options();
  wanted.base_path.clear();
  wanted.create = false;
  const Store store(wanted);
  EXPECT_EQ(store.base().path(), base_path());
}

TEST_F(StoreOpenTest, FileInPlaceOfTheStoreIsRefused) {
  write_file(store_path(), pattern(1, 10));
  EXPECT_EQ(refusal().code(), ENOTDIR);
}

TEST_F(StoreOpenTest, DirectoryWithOtherThingsIsRefused) {
  fs::create_directory(store_path());
  write_file(store_path() + "/letter.txt", pattern(1, 10));
  EXPECT_EQ(refusal().code(), ENOTEMPTY);
  EXPECT_EQ(names_in(store_path()), std::vector<std::string>{"letter.txt"});
}

TEST_F(StoreOpenTest, MissingBaseIsNamed) {
  remove_file(base_path());
  const Error error = refusal();
  EXPECT_EQ(error.code(), ENOENT);
  EXPECT_TRUE(says(error, base_path()));
  EXPECT_FALSE(fs::exists(store_path()));
}

TEST_F(StoreOpenTest, BadChunkSizeMakesNoStore) {
  for (const uint32_t size : {0U, 512U, 5000U, 4U << 20}) {
    chunk_size_ = size;
    EXPECT_EQ(refusal().code(), EINVAL) << size;
    EXPECT_FALSE(fs::exists(catalog_path())) << size;
  }
}

TEST_F(StoreOpenTest, UnknownPolicyMakesNoStore) {
  Store::Options wanted = options();
  wanted.policy = "dense";
  EXPECT_EQ(refusal(wanted).code(), EINVAL);
  EXPECT_FALSE(fs::exists(store_path()));
}

TEST_F(StoreOpenTest, OtherChunkSizeOrPolicyIsRefused) {
  make_store();
  chunk_size_ = 65536;
  const Error error = refusal();
  EXPECT_EQ(error.code(), EINVAL);
  EXPECT_TRUE(says(error, "4096"));
  chunk_size_ = std::nullopt;
  EXPECT_NO_THROW(open());
}

TEST_F(StoreOpenTest, MakingThatWasCutShortIsDoneAgain) {
  fs::create_directories(store_path() + "/layers");
  write_file(store_path() + "/lock", {});
  { Database database(catalog_path(), Database::Mode::create); }
  EXPECT_NO_THROW(open());
  EXPECT_EQ(store_->image_count(), 0U);
}

TEST_F(StoreOpenTest, LeftOversOfACatalogsMakingMeanNothing) {
  fs::create_directories(store_path() + "/layers");
  for (const char* name : {"lock", "catalog.db.new", "catalog.db.new-journal"}) {
    write_file(store_path() + "/" + name, pattern(3, 5000));
  }
  EXPECT_NO_THROW(open());
  for (const std::string& name : names_in(store_path())) {
    EXPECT_FALSE(name.starts_with("catalog.db.new")) << name;
  }
}

TEST_F(StoreOpenTest, WhatAKilledServerLeftInTheLogIsDurableOnceTheStoreIsOpen) {
  open();
  Database other(catalog_path(), Database::Mode::read_only);
  ASSERT_EQ(other.pragma("application_id"), kApplicationId);  // from here on it keeps the log
  use("a");
  crash();
  open();
  const std::string alone = directory_ / "alone.db";
  write_file(alone, read_file(catalog_path()));
  EXPECT_EQ(Catalog(alone, Database::Mode::read_write).images().size(), 1U);
}

TEST_F(StoreOpenTest, EmptyCatalogOverCowFilesIsDamageAndNothingIsRemoved) {
  make_store();
  ASSERT_EQ(::truncate(catalog_path().c_str(), 0), 0);
  const auto before = snapshot();
  EXPECT_EQ(refusal().code(), EUCLEAN);
  EXPECT_EQ(snapshot(), before);
}

TEST_F(StoreOpenTest, MissingCatalogOverCowFilesIsDamageAndNothingIsRemoved) {
  make_store();
  remove_file(catalog_path());
  const auto before = snapshot();
  EXPECT_EQ(refusal().code(), EUCLEAN);
  EXPECT_EQ(snapshot(), before);
}

TEST_F(StoreOpenTest, TruncatedCatalogIsDamage) {
  make_store();
  for (const off_t size : {20'000, 8192, 5000, 4096, 100}) {
    ASSERT_EQ(::truncate(catalog_path().c_str(), size), 0);
    const auto before = snapshot();
    const int code = refusal().code();
    EXPECT_TRUE(code == EUCLEAN || code == EINVAL) << size << " " << code;
    EXPECT_EQ(snapshot().size(), before.size());
    EXPECT_EQ(snapshot().at(store_path() + "/layers/1.cow"),
              before.at(store_path() + "/layers/1.cow"));
  }
}

TEST_F(StoreOpenTest, CatalogThatIsNoDatabaseIsRefused) {
  make_store();
  write_file(catalog_path(), pattern(9, 30'000));
  const auto before = snapshot();
  EXPECT_EQ(refusal().code(), EINVAL);
  EXPECT_EQ(snapshot(), before);
}

TEST_F(StoreOpenTest, OtherProgramsDatabaseIsRefusedAndNotChanged) {
  fs::create_directory(store_path());
  {
    Database database(catalog_path(), Database::Mode::create);
    database.execute("CREATE TABLE t (n); PRAGMA journal_mode = DELETE");
  }
  const auto before = snapshot();
  EXPECT_EQ(refusal().code(), EINVAL);
  EXPECT_EQ(snapshot(), before);
}

TEST_F(StoreOpenTest, MissingCowFileIsNamed) {
  make_store();
  remove_file(store_path() + "/layers/1.cow");
  const Error error = refusal();
  EXPECT_EQ(error.code(), EUCLEAN);
  EXPECT_TRUE(says(error, "layers/1.cow"));
}

TEST_F(StoreOpenTest, MissingLayersFolderIsAnError) {
  make_store();
  fs::remove_all(store_path() + "/layers");
  EXPECT_EQ(refusal().code(), ENOENT);
}

TEST_F(StoreOpenTest, CowFileThatIsALinkIsRefused) {
  make_store();
  const std::string victim = directory_ / "victim";
  write_file(victim, filled(100, 5));
  remove_file(store_path() + "/layers/1.cow");
  ASSERT_EQ(::symlink(victim.c_str(), (store_path() + "/layers/1.cow").c_str()), 0);
  const Error error = refusal();
  EXPECT_EQ(error.code(), EUCLEAN);
  EXPECT_TRUE(says(error, "layers/1.cow"));
  EXPECT_EQ(read_file(victim), filled(100, 5));
}

/// Without its CoW file, or with something else in its place.
class StoreGivesUpTest : public StoreOpenTest, public testing::WithParamInterface<bool> {};

INSTANTIATE_TEST_SUITE_P(, StoreGivesUpTest, testing::Bool(), [](const auto& chosen) {
  return chosen.param ? "ALinkInItsPlace" : "NothingInItsPlace";
});

TEST_P(StoreGivesUpTest, AnImageWhoseCowFileIsGone) {
  make_store();
  open();
  write(*use("b"), 0, filled(10, 2));
  ASSERT_TRUE(store_->close());
  crash();
  const std::string victim = directory_ / "victim";
  test::write_file(victim, filled(100, 5));
  remove_file(store_path() + "/layers/1.cow");
  if (GetParam()) {
    ASSERT_EQ(::symlink(victim.c_str(), (store_path() + "/layers/1.cow").c_str()), 0);
  }
  EXPECT_TRUE(says(refusal(), "cowfs rm --store " + store_path() + " a`"));
  {
    Store::Options names = options();
    names.create = false;
    names.names_only = true;
    Store store(names);
    store.remove("a");
    EXPECT_TRUE(store.close());
  }
  EXPECT_EQ(read_file(victim), filled(100, 5));
  open();
  EXPECT_EQ(store_->find("a"), nullptr);
  EXPECT_EQ(content(*use("b"), 0, 10), filled(10, 2));
}

TEST_F(StoreOpenTest, ShortCowFileIsAnErrorAndNoZeros) {
  make_store();
  ASSERT_EQ(::truncate((store_path() + "/layers/1.cow").c_str(), 100), 0);
  open();
  const auto image = use("a");
  EXPECT_EQ(error_of([&] { content(*image, 0, 4096); }).code(), EIO);
  EXPECT_EQ(content(*image, 4096, 4096),
            Bytes(base_content_.begin() + 4096, base_content_.begin() + 8192));
  // Nothing is written: the file would grow, and zeros take the place of what is missing.
  EXPECT_EQ(error_of([&] { write(*image, 20'000, filled(4096, 2)); }).code(), EIO);
  EXPECT_EQ(error_of([&] { image->make_zero(0, 4096); }).code(), EIO);
  EXPECT_EQ(error_of([&] { image->reserve(20'000, 4096); }).code(), EIO);
  EXPECT_EQ(error_of([&] { image->resize(100'000); }).code(), EIO);
  EXPECT_EQ(error_of([&] { content(*image, 0, 4096); }).code(), EIO);
  EXPECT_EQ(fs::file_size(store_path() + "/layers/1.cow"), 100U);
  EXPECT_NO_THROW(image->flush());
}

TEST_F(StoreOpenTest, ShortCowFileIsFoundWhereverItEnds) {
  constexpr uint64_t kFar = 4096 * uint64_t{2048} * 3000;  // pages beyond those looked at
  open();
  {
    const auto image = use("a");
    image->extend(2 * kFar);
    for (const uint64_t place : {uint64_t{0}, uint64_t{5} << 20, uint64_t{100} << 20, kFar}) {
      write(*image, place, filled(4096, 1));
    }
    image->flush();
  }
  ASSERT_TRUE(store_->close());
  crash();
  const std::string file = store_path() + "/layers/1.cow";
  const auto refuses_writes = [&] {
    open();
    const auto image = use("a");
    try {
      write(*image, 8192, filled(1, 1));
    } catch (const Error& error) {
      return error.code() == EIO;
    }
    return false;
  };
  EXPECT_FALSE(refuses_writes());
  crash();
  for (const uint64_t size : {kFar + 4095, kFar, uint64_t{6} << 20, uint64_t{4096}, uint64_t{0}}) {
    fs::resize_file(file, size);
    EXPECT_TRUE(refuses_writes()) << size;
    crash();
  }
}

TEST_F(StoreOpenTest, LeftOverCowFilesAreRemovedAndOtherFilesAreNot) {
  make_store();
  for (const char* name : {"77.cow", "077.cow", "x.cow", "77.cow.bak", "-1.cow", ".cow"}) {
    write_file(store_path() + "/layers/" + name, pattern(1, 10));
  }
  run_sql(catalog_path(), "UPDATE sqlite_sequence SET seq = 77 WHERE name = 'layer'");
  open();
  EXPECT_EQ(
      names_in(store_path() + "/layers"),
      (std::vector<std::string>{"-1.cow", ".cow", "077.cow", "1.cow", "77.cow.bak", "x.cow"}));
}

TEST_F(StoreOpenTest, CowFileThatIsNewerThanTheCatalogIsNotTakenForALeftOver) {
  // As when an old copy of the catalog was put back.
  make_store();
  write_file(store_path() + "/layers/2.cow", pattern(1, 10));
  const Error error = refusal();
  EXPECT_EQ(error.code(), EUCLEAN);
  EXPECT_TRUE(says(error, "layers/2.cow"));
  EXPECT_EQ(read_file(store_path() + "/layers/2.cow"), pattern(1, 10));
}

TEST_F(StoreOpenTest, LeftOverFileOfALayerWithoutARowIsEmptiedBeforeUse) {
  open();
  { use("a"); }
  crash();
  // A crash came between the making of the file and the commit that names it.
  write_file(store_path() + "/layers/1.cow", filled(100'000, 0xee));
  open();
  const auto image = use("a");
  EXPECT_EQ(content(*image), base_content_);
  write(*image, 10'000, filled(1, 1));
  EXPECT_EQ(content(*image, 0, 10'000),
            Bytes(base_content_.begin(), base_content_.begin() + 10'000));
  EXPECT_EQ(image->own_bytes(), 4096U);
}

TEST_F(StoreOpenTest, NewerFormatIsRefusedAndNotChanged) {
  make_store();
  run_sql(catalog_path(), "PRAGMA user_version = 77");
  const auto before = snapshot();
  const Error error = refusal();
  EXPECT_EQ(error.code(), EPROTONOSUPPORT);
  EXPECT_TRUE(says(error, "version 77"));
  EXPECT_EQ(error_of([&] { summarize_store(store_path()); }).code(), EPROTONOSUPPORT);
  EXPECT_EQ(snapshot(), before);
}

TEST_F(StoreOpenTest, OlderFormatIsUpgradedAfterACopyWasKept) {
  make_store();
  const int now = current_schema().version;
  const std::array kSteps{Migration{.from = now, .sql = "CREATE TABLE note (text TEXT)"}};
  Schema next = current_schema();
  next.version = now + 1;
  next.migrations = kSteps;
  Store::Options wanted = options();
  wanted.schema = &next;
  {
    Store store(wanted);
    EXPECT_EQ(store.facts().format_version, now + 1);
    EXPECT_EQ(content(*store.find("a")->use(), 0, 10), filled(10, 1));
  }
  const std::string copy = catalog_path() + ".v" + std::to_string(now);
  EXPECT_TRUE(fs::exists(copy));
  EXPECT_EQ(refusal().code(), EPROTONOSUPPORT);  // the program of before
  fs::rename(copy, catalog_path());
  open();
  EXPECT_EQ(content(*use("a"), 0, 10), filled(10, 1));
}

TEST_F(StoreOpenTest, ChangedBaseIsRefusedAndCanBeAccepted) {
  make_store();
  make_base(pattern(2, 50'000));
  const Error error = refusal();
  EXPECT_EQ(error.code(), ESTALE);
  EXPECT_TRUE(says(error, "--accept-changed-base"));
  Store::Options wanted = options();
  wanted.accept_changed_base = true;
  { const Store store(wanted); }
  open();  // it is recorded now
  EXPECT_EQ(content(*use("a"), 4096, 4096),
            Bytes(base_content_.begin() + 4096, base_content_.begin() + 8192));
}

TEST_F(StoreOpenTest, ShorterBaseThatWasAcceptedReadsAsZerosBehindItsEnd) {
  make_store();
  make_base(pattern(2, 10'000));
  Store::Options wanted = options();
  wanted.accept_changed_base = true;
  Store store(wanted);
  const auto image = store.find("a")->use();
  EXPECT_EQ(image->size(), 50'000U);
  EXPECT_EQ(content(*image, 10'000, 40'000), filled(40'000, 0));
}

TEST_F(StoreOpenTest, OtherBaseIsRefused) {
  make_store();
  write_file(directory_ / "other.img", pattern(3, 50'000));
  Store::Options wanted = options();
  wanted.base_path = directory_ / "other.img";
  EXPECT_EQ(refusal(wanted).code(), ESTALE);
}

TEST_F(StoreOpenTest, MovedBaseIsRecorded) {
  make_store();
  fs::rename(base_path(), directory_ / "moved.img");
  Store::Options wanted = options();
  wanted.base_path = directory_ / "moved.img";
  { const Store store(wanted); }
  EXPECT_EQ(summarize_store(store_path()).facts.base_path, directory_ / "moved.img");
}

TEST_F(StoreOpenTest, StoreThatIsMountedElsewhereIsRefusedAndItsHolderNamed) {
  Store::Options first = options();
  first.mount = "/proc";  // a mount point that is one
  const Store store(first);
  const Error error = refusal();
  EXPECT_EQ(error.code(), EBUSY);
  EXPECT_TRUE(says(error, std::to_string(::getpid())));
  EXPECT_TRUE(says(error, "/proc"));
}

TEST_F(StoreOpenTest, StoreBehindALinkIsTheSameStore) {
  make_store();
  fs::create_directory_symlink(directory_.path(), directory_ / "link");
  Store::Options wanted = options();
  wanted.directory = directory_ / "link/base.img.cowfs";
  Store store(wanted);
  EXPECT_EQ(content(*store.find("a")->use(), 0, 10), filled(10, 1));
}

TEST_F(StoreOpenTest, ReadOnlyFileSystemIsRefused) {
  make_store();
  const std::string point = directory_ / "read-only";
  const ReadOnlyView view(directory_.path(), point);
  if (view.error() != 0) GTEST_SKIP() << "no right to mount: " << error_text(view.error());
  Store::Options wanted = options();
  wanted.directory = point + "/base.img.cowfs";
  const Error error = refusal(wanted);
  EXPECT_EQ(error.code(), EROFS);
}

TEST_F(StoreOpenTest, LookingChangesNothing) {
  make_store();
  fs::create_directory(directory_ / "odd %41?#name");
  const std::string moved = directory_ / "odd %41?#name/store";
  fs::rename(store_path(), moved);
  const auto before = fs::last_write_time(moved);
  const std::vector<std::string> names = names_in(moved);
  EXPECT_EQ(summarize_store(moved).images.size(), 1U);
  EXPECT_EQ(names_in(moved), names);
  EXPECT_EQ(fs::last_write_time(moved), before);
}

TEST_F(StoreOpenTest, LookingAtWhatACrashLeftChangesNothingAndSeesTheLog) {
  open();
  { use("a"); }
  const std::string copy = directory_ / "copy";  // as a crash leaves it: a log, and no index of it
  fs::copy(store_path(), copy, fs::copy_options::recursive);
  fs::remove(copy + "/catalog.db-shm");
  ASSERT_GT(fs::file_size(copy + "/catalog.db-wal"), 0U);
  const std::vector<std::string> names = names_in(copy);
  const Bytes log = read_file(copy + "/catalog.db-wal");
  const Bytes catalog = read_file(copy + "/catalog.db");
  EXPECT_EQ(summarize_store(copy).images.at(0).name, "a");
  EXPECT_EQ(names_in(copy), names);
  EXPECT_EQ(read_file(copy + "/catalog.db-wal"), log);
  EXPECT_EQ(read_file(copy + "/catalog.db"), catalog);
}

TEST_F(StoreOpenTest, LookingAtAReadOnlyStoreWorksUnlessALogIsToBeRead) {
  open();
  { use("a"); }
  const std::string copy = directory_ / "copy";
  fs::copy(store_path(), copy, fs::copy_options::recursive);
  ASSERT_TRUE(store_->close());
  crash();
  const std::string point = directory_ / "read-only";
  const ReadOnlyView view(directory_.path(), point);
  if (view.error() != 0) GTEST_SKIP() << "no right to mount: " << error_text(view.error());
  EXPECT_NO_THROW(EXPECT_EQ(summarize_store(point + "/base.img.cowfs").images.size(), 1U));
  const Error error = error_of([&] { summarize_store(point + "/copy"); });
  EXPECT_EQ(error.code(), EROFS);
  EXPECT_TRUE(says(error, "write-ahead log"));
}

TEST_F(StoreOpenTest, NamesCanBeChangedWithoutTheBase) {
  make_store();
  fs::rename(base_path(), directory_ / "away");
  Store::Options wanted = options();
  wanted.base_path.clear();
  wanted.create = false;
  EXPECT_EQ(refusal(wanted).code(), ENOENT);
  wanted.names_only = true;
  {
    Store store(wanted);
    EXPECT_EQ(error_of([&] { static_cast<void>(store.find("a")->use()); }).code(), ENOENT);
    store.rename("a", "b", Store::Rename::no_replace);
    EXPECT_TRUE(store.close());
  }
  fs::rename(directory_ / "away", base_path());
  open();
  EXPECT_EQ(content(*use("b"), 0, 10), filled(10, 1));
  crash();
  remove_file(base_path());
  Store store(wanted);
  store.remove("b");
  EXPECT_TRUE(store.close());
  EXPECT_TRUE(fs::is_empty(store_path() + "/layers"));
}

TEST_F(StoreOpenTest, OfSeveralThatMakeAStoreAtOnceEachHasItOrIsRefused) {
  // Processes, since that is what SQLite's locks tell apart.
  for (int round = 0; round < 20; ++round) {
    fs::remove_all(store_path());
    std::array<int, 2> start{};
    ASSERT_EQ(::pipe(start.data()), 0);
    std::vector<pid_t> makers;
    for (int maker = 0; maker < 3; ++maker) {
      makers.push_back(::fork());
      if (makers.back() != 0) continue;
      ::close(start[1]);
      char end = 0;
      static_cast<void>(::read(start[0], &end, 1));  // returns when all are there
      try {
        Store::Options wanted = options();
        wanted.mount = "/proc";  // so that it is not waited for
        Store store(wanted);
        store.create({.name = std::to_string(maker), .empty = false, .size = std::nullopt});
        ::_exit(store.close() ? 0 : 3);
      } catch (const Error& error) {
        if (error.code() != EBUSY) std::fprintf(stderr, "%s\n", error.what());
        ::_exit(error.code() == EBUSY && says(error, "in use by process") ? 1 : 2);
      }
    }
    ::close(start[0]);
    ::close(start[1]);
    size_t winners = 0;
    for (const pid_t maker : makers) {
      int status = 0;
      ASSERT_EQ(::waitpid(maker, &status, 0), maker);
      ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) <= 1) << round << ": " << status;
      if (WEXITSTATUS(status) == 0) ++winners;
    }
    EXPECT_GE(winners, 1U);
    open();
    EXPECT_EQ(store_->image_count(), winners);
    crash();
  }
}

struct Hostile {
  const char* name;
  const char* sql;
};

class HostileStoreTest : public StoreOpenTest, public ::testing::WithParamInterface<Hostile> {};

TEST_P(HostileStoreTest, IsRefusedAndNothingIsRemoved) {
  make_store();
  run_sql(catalog_path(), GetParam().sql);
  EXPECT_EQ(refusal().code(), EUCLEAN);
  EXPECT_TRUE(fs::exists(store_path() + "/layers/1.cow"));
}

INSTANTIATE_TEST_SUITE_P(
    Each, HostileStoreTest,
    ::testing::Values(
        Hostile{"ImageWithoutLayer", "PRAGMA foreign_keys = OFF; DELETE FROM layer"},
        Hostile{"TwoImagesOnOneLayer",
                "INSERT INTO image SELECT 9, 'twin', layer, size, mode, uid, gid, atime_ns, "
                "mtime_ns, ctime_ns, btime_ns, NULL FROM image"},
        Hostile{"NameWithSlash", "UPDATE image SET name = 'a/b'"}),
    [](const auto& hostile) { return std::string(hostile.param.name); });

}  // namespace
}  // namespace cowfs::test
