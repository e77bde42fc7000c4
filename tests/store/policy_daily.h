#pragma once

#include <atomic>
#include <cstdint>

#include "store/policy.h"

namespace cowfs::test {

/// The policy of cowfs-policy(7): what is written on one day goes to one file, `daily-<day>` in the
/// store, one chunk behind the other, and a file whose chunks are all given up is removed. For
/// backups that copy the files of a day.
extern const Policy kDailyPolicy;

/// Days since the epoch, as the policy sees it.
extern std::atomic<uint64_t> today;

}  // namespace cowfs::test
