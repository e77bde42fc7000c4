#pragma once

#include <memory>

#include "store/policy.h"

namespace cowfs {

/// Policy `pool`: see policy_pool.cc.
std::unique_ptr<StorePolicy> open_pool_policy(const PolicyContext& context);

}  // namespace cowfs
