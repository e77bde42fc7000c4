#include "fs/deferred.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace cowfs {
namespace {

TEST(Deferred, RunsEverythingThatWasQueuedBeforeItEnds) {
  std::atomic<int> done = 0;
  {
    Deferred deferred(2);
    for (int i = 0; i < 1000; ++i) deferred.run([&done] { ++done; });
  }
  EXPECT_EQ(done, 1000);
}

TEST(Deferred, OneActionThatWaitsDoesNotKeepOthersBack) {
  std::promise<void> go;
  std::promise<void> seen;
  Deferred deferred(2);
  deferred.run([&go] { go.get_future().wait(); });
  deferred.run([&seen] { seen.set_value(); });
  seen.get_future().wait();
  go.set_value();
}

}  // namespace
}  // namespace cowfs
