#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "store/check.h"
#include "tests/store/check_fixture.h"

namespace cowfs::test {
namespace {

namespace fs = std::filesystem;

/// A check by the server that serves the store, while images are written to.
class CheckInUseTest : public CheckFixture {
 protected:
  std::shared_ptr<Image> make(const std::string& name) {
    Store::NewImage wanted;
    wanted.name = name;
    return store_->create(wanted);
  }
  Outcome check_in_use(bool repair = false) {
    Outcome outcome;
    outcome.result = store_->check({.repair = repair, .receive = [&](const Finding& finding) {
                                      outcome.findings.push_back(finding);
                                    }});
    return outcome;
  }
};

TEST_F(CheckInUseTest, WhatIsWrongIsFoundAndLeaksAreRepaired) {
  open();
  const Image::Use image = use("dom1");
  punch(1, 2 * kChunk, kChunk);
  fill(1, 10 * kChunk, kChunk);
  sql("INSERT INTO map_page VALUES (77, 0, zeroblob(512)); UPDATE sqlite_sequence SET seq = 9");
  fill(5, 0, kChunk);
  const Outcome outcome = check_in_use();
  EXPECT_EQ(outcome.result.damage, 1U) << outcome.text();
  EXPECT_EQ(outcome.result.leaks, 3U) << outcome.text();
  const Bytes before = content(*image);
  EXPECT_EQ(check_in_use(true).result.repaired, 3U);
  const Outcome again = check_in_use();
  ASSERT_EQ(again.findings.size(), 1U) << again.text();
  EXPECT_EQ(again.findings[0].kind, "lost_data");
  EXPECT_EQ(again.findings[0].range->offset, 2 * kChunk);
  EXPECT_EQ(content(*image), before);
}

TEST_F(CheckInUseTest, ACowFileThatIsGoneIsDamage) {
  open();
  const Image::Use image = use("dom1");
  fs::remove(cow(1));
  fs::remove(cow(2));
  const Outcome outcome = check_in_use();
  EXPECT_EQ(outcome.result.damage, 2U) << outcome.text();
  for (const Finding& finding : outcome.findings) {
    // What is open can still be saved.
    const bool copy_out = finding.remedy.find("copy the image out") != std::string::npos;
    EXPECT_EQ(copy_out, finding.image == "dom1") << finding.image << ": " << finding.remedy;
  }
}

TEST_F(CheckInUseTest, AMapThatCannotBeReadIsDamageAndTheRestIsChecked) {
  open();
  sql("UPDATE map_page SET bits = x'00' WHERE layer = 1");
  punch(2, 2 * kChunk, kChunk);
  const Outcome outcome = check_in_use();
  EXPECT_NE(outcome.text().find("damage bad_map [dom1]"), std::string::npos) << outcome.text();
  EXPECT_NE(outcome.text().find("damage lost_data [dom2]"), std::string::npos) << outcome.text();
}

TEST_F(CheckInUseTest, ACatalogThatIsGoneOrReplacedIsDamage) {
  open();
  const std::string aside = directory_ / "aside";
  fs::rename(catalog_path(), aside);
  EXPECT_NE(check_in_use().text().find("damage catalog"), std::string::npos);
  fs::copy_file(aside, catalog_path());
  EXPECT_NE(check_in_use().text().find("damage catalog"), std::string::npos);
  fs::rename(aside, catalog_path());
  EXPECT_TRUE(check_in_use().findings.empty());
}

// Trims that wait for their commit, and spaces that wait to be given back after it, are no leaks.
TEST_F(CheckInUseTest, WhatIsTrimmedIsNoLeakBeforeAndAfterItsCommit) {
  open();
  const Image::Use image = use("dom1");
  image->make_zero(16 * kChunk, 2 * kChunk);
  EXPECT_TRUE(check_in_use().findings.empty());
  std::atomic<bool> committed = false;
  std::atomic<bool> go_on = false;
  faults_.set([&](const std::string&, FileOperation operation, uint64_t, uint64_t) {
    if (operation == FileOperation::punch && !committed.exchange(true)) {
      while (!go_on) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return 0;
  });
  // Two ranges: while the first is punched the second waits, and neither is in a commit any more.
  image->make_zero(0, kChunk);
  std::thread flusher([&] { image->flush(); });
  while (!committed) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  Outcome outcome;
  std::thread checker([&] { outcome = check_in_use(); });
  // The checker may wait for the chunk that is being punched.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  go_on = true;
  flusher.join();
  checker.join();
  EXPECT_TRUE(outcome.findings.empty()) << outcome.text();
}

TEST_F(CheckInUseTest, NoFalseAlarmWhileImagesAreWrittenTrimmedResizedAndMade) {
  open();
  constexpr int kImages = 6;
  std::atomic<bool> stop = false;
  std::vector<std::thread> guests;
  for (int i = 0; i < kImages; ++i) {
    guests.emplace_back([&, i] {
      std::mt19937_64 random(static_cast<uint64_t>(i));
      const std::string name = "guest" + std::to_string(i);
      make(name);
      while (!stop) {
        const Image::Use image = store_->find(name)->use();
        for (int n = 0; n < 50; ++n) {
          const uint64_t at = random() % 60 * kChunk;
          const uint64_t length = (1 + random() % 8) * kChunk;
          switch (random() % 8) {
            case 0:
              image->flush();
              break;
            case 1:
              image->resize((20 + random() % 60) * kChunk);
              break;
            case 2:
            case 3:
              image->make_zero(at, length);
              break;
            default:
              write(*image, at, pattern(random(), length));
          }
        }
        const std::string other = name + "x";
        write(*make(other)->use(), 0, pattern(1, kChunk));
        store_->remove(other);
      }
    });
  }
  for (int round = 0; round < 15; ++round) {
    const Outcome outcome = check_in_use(round % 3 == 2);
    EXPECT_TRUE(outcome.findings.empty()) << outcome.text();
  }
  stop = true;
  for (std::thread& guest : guests) guest.join();
  EXPECT_TRUE(check_in_use().findings.empty());
}

}  // namespace
}  // namespace cowfs::test
