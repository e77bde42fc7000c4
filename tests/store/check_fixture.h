#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "store/check.h"
#include "tests/store/support.h"

namespace cowfs::test {

/// What a check came to, and all that it found on the way.
struct Outcome {
  CheckResult result;
  std::vector<Finding> findings;

  [[nodiscard]] std::string text() const;
};

/// Two images with data at [0, 8), [16, 20) chunks, and a trimmed part at [4, 6), in a store at
/// rest that is broken and checked.
class CheckFixture : public StoreFixture {
 protected:
  using Severity = Finding::Severity;

  void SetUp() override;

  void sql(const std::string& text) const { run_sql(catalog_path(), text); }
  [[nodiscard]] std::string cow(uint64_t layer) const {
    return store_path() + "/layers/" + std::to_string(layer) + ".cow";
  }
  void punch(uint64_t layer, uint64_t offset, uint64_t length) const;
  void fill(uint64_t layer, uint64_t offset, uint64_t length) const;

  [[nodiscard]] Outcome check_as(bool repair) const;

  /// Everything in the store but what the lock says.
  [[nodiscard]] std::map<std::string, Bytes> files() const;

  /// A check without repair finds just this, and changes nothing.
  Outcome expect(Severity severity, const std::string& kind, const std::string& words) const;

  /// A repair changes nothing, and says so.
  void expect_no_repair() const;

  /// A repair mends it, leaves the files `touched` alone changed besides the catalog, every image's
  /// content as `contents` has it, and nothing to be found afterwards.
  void expect_repair(const std::vector<std::string>& touched,
                     const std::map<std::string, Bytes>& contents);

  /// Of every image, through the ordinary code.
  std::map<std::string, Bytes> all_contents();
};

}  // namespace cowfs::test
