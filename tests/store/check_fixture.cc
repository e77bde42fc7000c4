#include "tests/store/check_fixture.h"

#include <fcntl.h>

#include <algorithm>
#include <filesystem>

namespace cowfs::test {

namespace fs = std::filesystem;

std::string Outcome::text() const {
  std::string all;
  for (const Finding& finding : findings) {
    all += std::string(name_of(finding.severity)) + " " + finding.kind + " [" + finding.image +
           "] " + finding.what + "\n";
  }
  return all;
}

void CheckFixture::SetUp() {
  make_base(pattern(1, 64 * kChunk));
  open();
  for (const char* name : {"dom1", "dom2"}) {
    const Image::Use image = use(name);
    write(*image, 0, pattern(2, 8 * kChunk));
    write(*image, 16 * kChunk, pattern(3, 4 * kChunk));
    image->make_zero(4 * kChunk, 2 * kChunk);
    image->flush();
  }
  EXPECT_TRUE(store_->close());
  store_.reset();
}

void CheckFixture::punch(uint64_t layer, uint64_t offset, uint64_t length) const {
  File(cow(layer), O_RDWR).punch(offset, length);
}

void CheckFixture::fill(uint64_t layer, uint64_t offset, uint64_t length) const {
  File(cow(layer), O_RDWR | O_CREAT, 0600).write(pattern(9, length), offset);
}

Outcome CheckFixture::check_as(bool repair) const {
  Outcome outcome;
  outcome.result =
      check_store(store_path(), {.repair = repair, .receive = [&](const Finding& finding) {
                                   outcome.findings.push_back(finding);
                                 }});
  return outcome;
}

std::map<std::string, Bytes> CheckFixture::files() const {
  std::map<std::string, Bytes> all;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(store_path())) {
    if (entry.path().filename() == "lock" || !entry.is_regular_file()) continue;
    all.emplace(entry.path().string(), read_file(entry.path()));
  }
  return all;
}

Outcome CheckFixture::expect(Severity severity, const std::string& kind,
                             const std::string& words) const {
  const auto before = files();
  Outcome outcome = check_as(false);
  EXPECT_EQ(files(), before);
  EXPECT_EQ(outcome.findings.size(), 1U) << outcome.text();
  if (outcome.findings.empty()) return outcome;
  const Finding& finding = outcome.findings[0];
  EXPECT_EQ(name_of(finding.severity), name_of(severity)) << outcome.text();
  EXPECT_EQ(finding.kind, kind) << outcome.text();
  EXPECT_NE(finding.what.find(words), std::string::npos) << outcome.text();
  EXPECT_FALSE(finding.repaired);
  EXPECT_FALSE(finding.remedy.empty());
  EXPECT_EQ(outcome.result.damage, severity == Severity::damage ? 1U : 0U);
  EXPECT_EQ(outcome.result.leaks, severity == Severity::leak ? 1U : 0U);
  return outcome;
}

void CheckFixture::expect_no_repair() const {
  const auto before = files();
  const Outcome outcome = check_as(true);
  EXPECT_EQ(files(), before);
  EXPECT_EQ(outcome.result.repaired, 0U);
  EXPECT_EQ(outcome.result.damage, 1U) << outcome.text();
}

void CheckFixture::expect_repair(const std::vector<std::string>& touched,
                                 const std::map<std::string, Bytes>& contents) {
  const auto before = files();
  const Outcome outcome = check_as(true);
  EXPECT_GE(outcome.result.repaired, 1U) << outcome.text();
  EXPECT_EQ(outcome.result.damage + outcome.result.leaks, 0U) << outcome.text();
  for (const auto& [path, bytes] : before) {
    const bool may_change = path.find("catalog.db") != std::string::npos ||
                            std::find(touched.begin(), touched.end(), path) != touched.end();
    if (may_change) continue;
    EXPECT_TRUE(fs::exists(path)) << path;
    if (fs::exists(path)) {
      EXPECT_EQ(read_file(path), bytes) << path;
    }
  }
  const Outcome again = check_as(false);
  EXPECT_EQ(again.result.damage + again.result.leaks, 0U) << again.text();
  EXPECT_EQ(all_contents(), contents);
}

std::map<std::string, Bytes> CheckFixture::all_contents() {
  std::map<std::string, Bytes> all;
  open();
  for (const Store::Entry& entry : store_->list(0, 100)) {
    all.emplace(entry.name, content(*entry.image->use()));
  }
  store_.reset();
  return all;
}

}  // namespace cowfs::test
