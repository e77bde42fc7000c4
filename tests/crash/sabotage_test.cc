// The explorer proves itself: it finds what each deliberate fault in the store's commits does.

#include "store/sabotage.h"

#include <gtest/gtest.h>

#include <iostream>

#include "tests/crash/campaign.h"

namespace cowfs::crash {
namespace {

struct Case {
  Sabotage what;
  const char* name;
  bool faults = false;  ///< it shows where calls fail
};

class SabotageTest : public ::testing::TestWithParam<Case> {
 protected:
  ~SabotageTest() override { active_sabotage = Sabotage::none; }
};

TEST_P(SabotageTest, IsFound) {
  active_sabotage = GetParam().what;  // inherited by the explorer's processes
  // Far less than a minute's work; a bound in traces holds on a busy machine too.
  const Report report = explore({.seed = 1, .traces = 300, .faults = GetParam().faults});
  std::cout << report.text();
  EXPECT_NE(report.violations, "");
}

INSTANTIATE_TEST_SUITE_P(
    Faults, SabotageTest,
    ::testing::Values(Case{Sabotage::commit_before_sync, "CommitBeforeSync"},
                      Case{Sabotage::no_data_sync, "NoDataSync"},
                      Case{Sabotage::reuse_at_once, "ReuseAtOnce"},
                      Case{Sabotage::synchronous_normal, "SynchronousNormal"},
                      Case{Sabotage::commit_live_page, "CommitLivePage"},
                      Case{Sabotage::punch_before_commit, "PunchBeforeCommit"},
                      Case{Sabotage::no_directory_sync, "NoDirectorySync"},
                      Case{Sabotage::trust_failed_sync, "TrustFailedSync", true},
                      Case{Sabotage::trust_short_read, "TrustShortRead", true}),
    [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace cowfs::crash
