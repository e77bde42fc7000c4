#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "store/policy.h"
#include "store/qcow2_file.h"

namespace cowfs {

/// Policy `qcow2`: see policy_qcow2.cc.
std::unique_ptr<StorePolicy> open_qcow2_policy(const PolicyContext& context);

/// EINVAL for one that a qcow2 file cannot name.
void require_base_of_qcow2(const BaseRow& base);

/// The file of a layer. Of the context's base null there is no backing file to compare with.
Qcow2File::Identity qcow2_identity(const PolicyContext& context, uint64_t layer);

}  // namespace cowfs
