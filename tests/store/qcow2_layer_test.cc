// Layers that are qcow2 files, given to QEMU's programs and back: what one wrote the other reads,
// `qemu-img check` finds nothing, and what QEMU made of a file that a layer cannot be is refused.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <random>

#include "store/big_endian.h"
#include "store/check.h"
#include "store/image_lock.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

class Qcow2LayerTest : public StoreFixture {
 protected:
  static constexpr size_t kBaseSize = 3'000'000;  // no whole number of chunks, nor of sectors

  Qcow2LayerTest() { policy_ = "qcow2"; }
  void SetUp() override {
    if (!has_qemu()) {
      GTEST_SKIP() << "qemu-img and qemu-io are not installed (qemu-utils)";
    }
    make_base(pattern(1, kBaseSize));
  }

  /// The exit status of a command in the layers' directory; its output is in log_.
  int run(const std::string& command) {
    const std::string line = "cd '" + store_path() + "/layers' && { " + command + "; } >'" +
                             (directory_ / "log") + "' 2>&1";
    const int status = std::system(line.c_str());
    const Bytes log = read_file(directory_ / "log");
    log_ = std::string(reinterpret_cast<const char*>(log.data()), log.size());
    return WEXITSTATUS(status);
  }
  void expect_run(const std::string& command) {
    EXPECT_EQ(run(command), 0) << command << "\n" << log_;
  }
  void end() {
    ASSERT_TRUE(store_->close());
    store_.reset();
  }
  void expect_for_qemu(const Bytes& wanted, const std::string& file = "1.qcow2") const {
    test::expect_for_qemu(store_path() + "/layers/" + file, wanted);
  }
  /// Remedies too, each behind a semicolon.
  std::string found_by_check() {
    CheckOptions check;
    std::string found;
    check.receive = [&](const Finding& finding) {
      found += finding.what + "; " + finding.remedy + "\n";
    };
    check_store(store_path(), check);
    return found;
  }
  void expect_check_clean() { EXPECT_EQ(found_by_check(), ""); }

  std::string log_;
};

/// A disk in memory.
class Model {
 public:
  Model(const Bytes& base, size_t size) : bytes(size), base_(base) {
    std::copy_n(base.begin(), std::min(size, base.size()), bytes.begin());
  }
  void write(size_t offset, const Bytes& data) {
    if (bytes.size() < offset + data.size()) bytes.resize(offset + data.size());
    std::copy(data.begin(), data.end(), bytes.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  void zero(size_t offset, size_t length) {
    if (offset >= bytes.size()) return;
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset),
                std::min(length, bytes.size() - offset), std::byte{});
  }

  Bytes bytes;

 private:
  const Bytes& base_;
};

/// Some of everything that changes an image, done to it and to the model.
void play(Image& image, Model& model, std::mt19937_64& random, int steps) {
  for (int step = 0; step < steps; ++step) {
    const size_t size = model.bytes.size();
    const size_t offset = random() % (size + 1);
    const size_t length = 1 + random() % (random() % 4 == 0 ? 400'000 : 9000);
    switch (random() % 9) {
      case 0:
        image.make_zero(offset, length);
        model.zero(offset, length);
        break;
      case 1:
        image.flush();
        break;
      case 2: {
        const size_t smaller = random() % 5 == 0 ? random() % (size + 1) : size - size % 5000;
        image.resize(smaller);
        model.bytes.resize(smaller);
        break;
      }
      case 3: {
        const size_t larger = size + random() % 300'000;
        image.extend(larger);
        model.bytes.resize(larger);
        break;
      }
      default: {
        const Bytes data = pattern(random(), length);
        write(image, offset, data);
        model.write(offset, data);
      }
    }
  }
}

TEST_F(Qcow2LayerTest, ANewImageIsThereForQemuAtOnce) {
  open().create({.name = "a", .empty = false, .size = std::nullopt});
  store_->create({.name = "empty", .empty = true, .size = 2'000'000});
  store_->create({.name = "large", .empty = false, .size = 9'000'001});
  end();
  expect_for_qemu(base_content_);
  expect_for_qemu(filled(2'000'000, 0), "2.qcow2");
  Bytes large = base_content_;
  large.resize(9'000'001);
  expect_for_qemu(large, "3.qcow2");
  expect_run("qemu-img info 1.qcow2 | grep -q 'backing file: " + base_path() + "'");
}

// With more clusters than one block of refcounts counts.
TEST_F(Qcow2LayerTest, LargeFilesAreCountedWhole) {
  open();
  Model model(base_content_, kBaseSize);
  {
    const auto image = use("a");
    for (uint64_t seed = 2; seed < 8; ++seed) {
      const Bytes data = pattern(seed, 5 << 20);
      write(*image, seed * (4 << 20) + seed, data);
      model.write(seed * (4 << 20) + seed, data);
      image->make_zero(seed * (4 << 20) + 9000, 1 << 20);
      model.zero(seed * (4 << 20) + 9000, 1 << 20);
      if (seed % 2 == 0) image->flush();
    }
  }
  end();
  expect_for_qemu(model.bytes);
  open();
  EXPECT_TRUE(content(*use("a")) == model.bytes);
  use("a")->resize(6 << 20);
  model.bytes.resize(6 << 20);
  end();
  expect_for_qemu(model.bytes);
}

TEST_F(Qcow2LayerTest, ABitmapOfQemuIsGoneBeforeItMissesAWrite) {
  open();
  const Bytes first = pattern(3, 1 << 20);
  write(*use("a"), 0, first);
  end();
  expect_run("qemu-img bitmap --add -f qcow2 1.qcow2 since");
  expect_run("qemu-img info -f qcow2 1.qcow2 | grep -q since");
  open();
  // In place: no table changes, and no size.
  const Bytes second = pattern(4, 1 << 20);
  write(*use("a"), 0, second);
  store_.reset();  // and no orderly end
  expect_run("! qemu-img info -f qcow2 1.qcow2 | grep -q since");
  open();
  EXPECT_TRUE(content(*use("a"), 0, second.size()) == second);
  end();
  expect_check_clean();
}

class Qcow2ChunkTest : public Qcow2LayerTest, public ::testing::WithParamInterface<uint32_t> {};

TEST_P(Qcow2ChunkTest, GoesBackAndForthWithQemu) {
  chunk_size_ = GetParam();
  const uint64_t seed = random_seed();
  SCOPED_TRACE("COWFS_SEED=" + std::to_string(seed));
  std::mt19937_64 random(GetParam() + seed);
  Model model(base_content_, kBaseSize);
  open();
  static_cast<void>(use("a"));
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    {
      const auto image = use("a");
      ASSERT_EQ(image->size(), model.bytes.size()) << round;
      ASSERT_TRUE(content(*image) == model.bytes) << round;
      play(*image, model, random, 12);
      if (round % 3 == 1 || model.bytes.size() < 600'000) {
        // QEMU is to resize it, and what the last sector has behind the end is not ours.
        model.bytes.resize((model.bytes.size() + 511) / 512 * 512);
        image->extend(model.bytes.size());
      }
      ASSERT_TRUE(content(*image) == model.bytes) << round;
    }
    end();
    expect_check_clean();
    expect_for_qemu(model.bytes);
    if (HasFailure()) return;
    // QEMU's turn. It knows whole sectors; what it writes behind the exact end is not kept.
    const size_t exact = model.bytes.size();
    model.bytes.resize((exact + 511) / 512 * 512);
    const size_t rounded = model.bytes.size();
    if (round % 3 == 1) {
      const size_t size = (random() % 6'000'000 + 600'000) / 512 * 512;
      expect_run("qemu-img resize --shrink -f qcow2 1.qcow2 " + std::to_string(size));
      model.bytes.resize(size);
    }
    if (model.bytes.size() < 600'000) {
      expect_run("qemu-img resize -f qcow2 1.qcow2 1M");
      model.bytes.resize(1 << 20);
    }
    std::string commands;
    for (int i = 0; i < 6; ++i) {
      const size_t length = (1 + random() % 200) * 512;
      const size_t offset = random() % (model.bytes.size() - length) / 512 * 512;
      const std::string where = std::to_string(offset) + " " + std::to_string(length);
      switch (random() % 4) {
        case 0:
          commands += " -c 'write -z " + where + "'";
          model.zero(offset, length);
          break;
        case 1:
          commands += " -c 'write -z -u " + where + "'";
          model.zero(offset, length);
          break;
        default:
          const int value = static_cast<int>(1 + random() % 255);
          commands += " -c 'write -P " + std::to_string(value) + " " + where + "'";
          model.write(offset, filled(length, value));
      }
    }
    expect_run("qemu-io -f qcow2 -d unmap" + commands + " 1.qcow2");
    SCOPED_TRACE(commands);
    if (model.bytes.size() == rounded) model.bytes.resize(exact);
    expect_for_qemu(model.bytes);
    open();
    ASSERT_EQ(store_->find("a")->size(), model.bytes.size());
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, Qcow2ChunkTest, ::testing::Values(4096, 65536, 2 << 20),
                         [](const auto& size) { return std::to_string(size.param); });

TEST_F(Qcow2LayerTest, WhatACrashLeftQemuRepairsAndCowfsReads) {
  for (const bool qemu_first : {false, true}) {
    std::mt19937_64 random(qemu_first ? 1 : 2);
    open();
    const std::string name = qemu_first ? "b" : "a";
    const std::string file = qemu_first ? "2.qcow2" : "1.qcow2";
    Model model(base_content_, kBaseSize);
    {
      const auto image = use(name);
      play(*image, model, random, 30);
      image->flush();
      play(*image, model, random, 1);
      image->flush();
    }
    crash();
    if (qemu_first) {
      // Repaired by whoever opens it for writing.
      expect_run("qemu-io -f qcow2 -c 'write -P 7 0 512' " + file);
      model.write(0, filled(512, 7));
      expect_run("qemu-img check " + file);
    }
    open();
    EXPECT_TRUE(content(*use(name)) == model.bytes);
    end();
    expect_for_qemu(model.bytes, file);
    expect_check_clean();
  }
}

TEST_F(Qcow2LayerTest, OneOfTheTwoHasItAtATime) {
  open();
  {
    const auto image = use("a");
    write(*image, 0, pattern(2, 5000));
    EXPECT_NE(run("qemu-io -f qcow2 -c 'write 0 512' 1.qcow2"), 0);
    EXPECT_NE(log_.find("lock"), std::string::npos) << log_;
  }
  end();
  {
    const File held(store_path() + "/layers/1.qcow2", O_RDWR);
    ASSERT_TRUE(try_image_lock(held));
    open();
    const Error error = error_of([this] { static_cast<void>(use("a")); });
    EXPECT_EQ(error.code(), EBUSY);
    EXPECT_EQ(error_of([this] { store_->remove("a"); }).code(), EBUSY);
    end();
    EXPECT_NE(found_by_check().find("1.qcow2: another program, such as QEMU"), std::string::npos);
    open();
  }
  EXPECT_TRUE(content(*use("a")) == over_base(0, pattern(2, 5000)));
}

// The kernel may have cached some of it.
TEST_F(Qcow2LayerTest, WhatChangesBelowAMountIsNotUsedBeforeTheNext) {
  open();
  write(*use("a"), 0, pattern(2, 5000));
  ASSERT_TRUE(store_->find("a")->retire_if_idle());
  static_cast<void>(use("a"));
  ASSERT_TRUE(store_->find("a")->retire_if_idle());
  expect_run("qemu-io -f qcow2 -c 'write -P 7 0 512' 1.qcow2");
  const Error error = error_of([this] { static_cast<void>(use("a")); });
  EXPECT_EQ(error.code(), EBUSY);
  EXPECT_NE(std::string(error.what()).find("mount it again"), std::string::npos) << error.what();
  reopen();
  Bytes wanted = over_base(0, pattern(2, 5000));
  std::fill_n(wanted.begin(), 512, std::byte{7});
  EXPECT_TRUE(content(*use("a")) == wanted);
}

// I7: where there is no room for a table, what was written waits for the next flush.
TEST_F(Qcow2LayerTest, AFlushWithoutRoomForATableLosesNothing) {
  open();
  {
    const auto image = use("a");
    write(*image, 0, pattern(2, 5000));
    faults_.set([](const std::string& path, FileOperation operation, uint64_t, uint64_t length) {
      const bool is_table = path.ends_with(".qcow2") && length == kChunk;
      return operation == FileOperation::write && is_table ? ENOSPC : 0;
    });
    EXPECT_EQ(error_of([&] { image->flush(); }).code(), ENOSPC);
    EXPECT_FALSE(image->failed());
    EXPECT_TRUE(content(*image) == over_base(0, pattern(2, 5000)));
    faults_.clear();
    image->flush();
  }
  crash();
  open();
  EXPECT_TRUE(content(*use("a")) == over_base(0, pattern(2, 5000)));
}

TEST_F(Qcow2LayerTest, AnImageWhoseFileCannotBeMadeIsNotThere) {
  open();
  faults_.set([](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    return operation == FileOperation::sync && path.ends_with(".qcow2") ? EIO : 0;
  });
  const Store::NewImage a{.name = "a", .empty = false, .size = std::nullopt};
  EXPECT_EQ(error_of([&] { store_->create(a); }).code(), EIO);
  EXPECT_EQ(store_->find("a"), nullptr);
  EXPECT_TRUE(names_in(store_path() + "/layers").empty());
  faults_.clear();
  store_->create(a);
  EXPECT_TRUE(content(*use("a")) == base_content_);
}

// What the catalog has is shown, and the next mount makes its layer.
TEST_F(Qcow2LayerTest, AnImageThatCannotBeTakenBackIsThere) {
  open();
  run_sql(catalog_path(),
          "CREATE TRIGGER fault BEFORE DELETE ON image BEGIN SELECT RAISE(ABORT, 'broken'); END");
  faults_.set([](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
    return operation == FileOperation::sync && path.ends_with(".qcow2") ? EIO : 0;
  });
  const Store::NewImage a{.name = "a", .empty = true, .size = 100'000};
  EXPECT_EQ(error_of([&] { store_->create(a); }).code(), EIO);
  EXPECT_NE(store_->find("a"), nullptr);
  faults_.clear();
  run_sql(catalog_path(), "DROP TRIGGER fault");
  EXPECT_EQ(error_of([&] { store_->create(a); }).code(), EEXIST);
  EXPECT_EQ(error_of([this] { static_cast<void>(store_->find("a")->use()); }).code(), EUCLEAN);
  reopen();
  EXPECT_TRUE(content(*use("a")) == filled(100'000, 0));
  end();
  expect_for_qemu(filled(100'000, 0));
}

TEST_F(Qcow2LayerTest, WhatALayerCannotBeIsRefused) {
  struct Case {
    const char* command;
    const char* says;
  };
  for (const Case& wrong :
       {Case{"qemu-img snapshot -c s 1.qcow2", "snapshots"},
        Case{"qemu-img rebase -u -b '' 1.qcow2", "backing file"},
        Case{"cp 2.qcow2 1.qcow2", "is layer 2"}, Case{"truncate -s 100 1.qcow2", "damaged"},
        Case{"qemu-img convert -O qcow2 1.qcow2 n && mv n 1.qcow2", "none that cowfs"},
        Case{"ln 1.qcow2 other", "hard link"}}) {
    SCOPED_TRACE(wrong.command);
    std::filesystem::remove_all(store_path());
    open();
    write(*use("a"), 0, pattern(2, 5000));
    write(*use("b"), 0, pattern(3, 5000));
    end();
    ASSERT_EQ(run(wrong.command), 0) << log_;
    const Bytes before = read_file(store_path() + "/layers/1.qcow2");
    open();
    const Error error = error_of([this] { static_cast<void>(use("a")); });
    EXPECT_NE(std::string(error.what()).find(wrong.says), std::string::npos) << error.what();
    EXPECT_TRUE(content(*use("b")) == over_base(0, pattern(3, 5000)));
    end();
    EXPECT_TRUE(read_file(store_path() + "/layers/1.qcow2") == before);
    // The check says so too, and the remedy is the message's own where it has one.
    const std::string found = found_by_check();
    EXPECT_NE(found.find(wrong.says), std::string::npos) << found;
    if (std::string_view(wrong.says) == "snapshots") {
      EXPECT_TRUE(found.ends_with("cannot write; delete them with `qemu-img snapshot -d`\n"))
          << found;
    }
  }
}

/// Entries of tables that a broken program or disk may leave: none is followed, and what a machine
/// writes does not go where they lead.
class Qcow2TablesTest : public Qcow2LayerTest {
 protected:
  static constexpr uint64_t kCopied = uint64_t{1} << 63U;

  /// With chunks 0 and 3 written, and closed.
  void make() {
    std::filesystem::remove_all(store_path());
    open();
    write(*use("a"), 0, pattern(2, 4096));
    write(*use("a"), 3 * kChunk, pattern(3, 4096));
    end();
  }
  [[nodiscard]] std::string file() const { return store_path() + "/layers/1.qcow2"; }
  [[nodiscard]] uint64_t number(uint64_t at) const {
    BigEndian<uint64_t> value;
    File(file(), O_RDONLY).read_exactly(std::as_writable_bytes(std::span(&value, 1)), at);
    return value;
  }
  void set_number(uint64_t at, uint64_t number) const {
    const BigEndian<uint64_t> value = number;
    File(file(), O_RDWR).write(std::as_bytes(std::span(&value, 1)), at);
  }
  [[nodiscard]] uint64_t l1() const { return number(40); }
  [[nodiscard]] uint64_t refcount_table() const { return number(48); }
  [[nodiscard]] uint64_t l2() const { return number(l1()) & ~kCopied; }
  /// The file is none the worse for what a machine tries.
  void expect_refused(const std::string& says) {
    const Bytes before = read_file(file());
    EXPECT_NE(found_by_check().find("damaged"), std::string::npos);
    open();
    const Error error = error_of([this] {
      const auto image = use("a");
      write(*image, 3 * kChunk, pattern(4, 4096));
      image->flush();
    });
    EXPECT_EQ(error.code(), EUCLEAN) << error.what();
    EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
    end();
    EXPECT_TRUE(read_file(file()) == before);
  }
};

TEST_F(Qcow2TablesTest, AChunkThatLiesOverATableIsNotWrittenTo) {
  for (int which = 0; which < 4; ++which) {
    SCOPED_TRACE(which);
    make();
    const std::array<uint64_t, 4> places{l1(), l2(), refcount_table(), number(refcount_table())};
    set_number(l2() + 3 * 8, kCopied | places.at(static_cast<size_t>(which)));
    expect_refused("where the file's own tables lie");
  }
}

TEST_F(Qcow2TablesTest, TablesThatLieOverEachOtherAreRefused) {
  make();
  set_number(l1(), kCopied | refcount_table());
  expect_refused("two of its tables lie at byte");
}

TEST_F(Qcow2TablesTest, AnEntryThatLeadsNowhereIsNoBase) {
  make();
  set_number(l1(), kCopied);
  expect_refused("entry 0 of its L1 table is 0x8000000000000000, which leads nowhere");
  make();
  set_number(l2() + 3 * 8, kCopied);
  expect_refused("chunk 3 has the entry 0x8000000000000000, which means nothing");
  make();
  set_number(l2() + 3 * 8, number(l2() + 3 * 8) | 2);
  expect_refused("chunk 3 has the entry");
}

TEST_F(Qcow2TablesTest, AClusterNotMarkedAsItsOwnIsSaid) {
  make();
  set_number(l2() + 3 * 8, number(l2() + 3 * 8) & ~kCopied);
  EXPECT_NE(found_by_check().find("1 of its clusters are not marked"), std::string::npos);
  EXPECT_NE(run("qemu-img check -q 1.qcow2"), 0);
  expect_run("qemu-img check -q -r all 1.qcow2");
  expect_check_clean();
}

TEST_F(Qcow2LayerTest, ABackingFileOfAnotherFormatIsSaidAndPutRight) {
  open();
  write(*use("a"), 0, pattern(2, 5000));
  end();
  // Whatever the base holds: QEMU would take what a guest has written there for a header.
  expect_run("qemu-img rebase -u -F qcow2 -b " + base_path() + " 1.qcow2");
  const std::string found = found_by_check();
  EXPECT_NE(found.find("base.img (qcow2) as its backing file, which is " + base_path() + " (raw)"),
            std::string::npos)
      << found;
  open();
  write(*use("a"), 0, pattern(3, 5000));
  end();
  expect_check_clean();
  expect_for_qemu(over_base(0, pattern(3, 5000)));
}

TEST_F(Qcow2LayerTest, TheBaseMayMove) {
  open();
  write(*use("a"), 10'000, pattern(2, 5000));
  end();
  const std::string moved = directory_ / "moved.img";
  ASSERT_EQ(::rename(base_path().c_str(), moved.c_str()), 0);
  Store::Options wanted = options();
  wanted.base_path = moved;
  store_ = std::make_unique<Store>(wanted);
  EXPECT_TRUE(content(*use("a")) == over_base(10'000, pattern(2, 5000)));
  end();
  expect_run("qemu-img info 1.qcow2 | grep -q 'backing file: " + moved + "'");
  expect_for_qemu(over_base(10'000, pattern(2, 5000)));
}

TEST_F(Qcow2LayerTest, ABaseWithTooLongAPathIsRefusedBeforeAnyLayerNamesIt) {
  open();
  write(*use("a"), 10'000, pattern(2, 5000));
  end();
  const std::string far = directory_.path() + "/" + std::string(250, 'a') + "/" +
                          std::string(250, 'b') + "/" + std::string(250, 'c') + "/" +
                          std::string(250, 'd');
  std::filesystem::create_directories(far);
  std::filesystem::copy_file(base_path(), far + "/base.img");
  Store::Options wanted = options();
  wanted.base_path = far + "/base.img";
  wanted.accept_changed_base = true;
  const Error error = error_of([&] { const Store store(wanted); });
  EXPECT_EQ(error.code(), EINVAL);
  EXPECT_TRUE(std::string(error.what()).find("1023") != std::string::npos) << error.what();
  open();
  EXPECT_TRUE(content(*use("a")) == over_base(10'000, pattern(2, 5000)));
  end();
  expect_for_qemu(over_base(10'000, pattern(2, 5000)));
}

TEST_F(Qcow2LayerTest, ClustersThatCountAsFreeAreFound) {
  open();
  write(*use("a"), 0, pattern(2, 100 * kChunk));
  end();
  // The refcounts are in the third cluster.
  File(store_path() + "/layers/1.qcow2", O_RDWR).write(Bytes(20), 2 * kChunk + 60);
  EXPECT_NE(run("qemu-img check 1.qcow2"), 0);
  CheckOptions check;
  std::string found;
  check.receive = [&](const Finding& finding) { found += finding.what + "\n"; };
  check_store(store_path(), check);
  EXPECT_NE(found.find("do not count as that"), std::string::npos) << found;
}

}  // namespace
}  // namespace cowfs::test
