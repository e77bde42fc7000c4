#pragma once

#include <memory>

#include "store/policy.h"

namespace cowfs {

/// Policy `sparse`: a chunk lives at the same offset in the layer's own sparse file as in the
/// image. The host file system allocates the space, and sequential reads stay sequential.
std::unique_ptr<StorePolicy> open_sparse_policy(const PolicyContext& context);

}  // namespace cowfs
