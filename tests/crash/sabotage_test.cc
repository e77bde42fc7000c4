// The explorer proves itself: it finds what each deliberate fault in the store's commits does.

#include "store/sabotage.h"

#include <gtest/gtest.h>

#include <iostream>

#include "tests/crash/campaign.h"

namespace cowfs::crash {
namespace {

struct Fault {
  Sabotage what;
  const char* name;
};

class SabotageTest : public ::testing::TestWithParam<Fault> {
 protected:
  ~SabotageTest() override { active_sabotage = Sabotage::none; }
};

TEST_P(SabotageTest, IsFound) {
  active_sabotage = GetParam().what;  // inherited by the explorer's processes
  // Far less than a minute's work; a bound in traces holds on a busy machine too.
  const Report report = explore({.seed = 1, .traces = 300});
  std::cout << report.text();
  EXPECT_NE(report.violations, "");
}

INSTANTIATE_TEST_SUITE_P(Faults, SabotageTest,
                         ::testing::Values(Fault{Sabotage::commit_before_sync, "CommitBeforeSync"},
                                           Fault{Sabotage::no_data_sync, "NoDataSync"},
                                           Fault{Sabotage::reuse_at_once, "ReuseAtOnce"},
                                           Fault{Sabotage::synchronous_normal, "SynchronousNormal"},
                                           Fault{Sabotage::commit_live_page, "CommitLivePage"},
                                           Fault{Sabotage::punch_before_commit,
                                                 "PunchBeforeCommit"},
                                           Fault{Sabotage::no_directory_sync, "NoDirectorySync"}),
                         [](const auto& fault) { return std::string(fault.param.name); });

}  // namespace
}  // namespace cowfs::crash
