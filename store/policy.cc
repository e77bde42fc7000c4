#include "store/policy.h"

#include <array>
#include <cerrno>

#include "store/error.h"
#include "store/policy_pool.h"
#include "store/policy_qcow2.h"
#include "store/policy_sparse.h"
#include "store/slot_map.h"

namespace cowfs {

std::span<const Policy> policies() {
  static constexpr std::array kPolicies{
      Policy{.name = "sparse",
             .default_chunk_size = 4 << 10,
             .map_bits = ChunkMap::kBits,
             .file_suffix = ".cow",
             .map_in_file = false,
             .has_pool = false,
             .open = open_sparse_policy},
      Policy{.name = "pool",
             .default_chunk_size = 64 << 10,
             .map_bits = SlotMap::kBits,
             .file_suffix = "",
             .map_in_file = false,
             .has_pool = true,
             .open = open_pool_policy},
      Policy{.name = "qcow2",
             .default_chunk_size = 64 << 10,
             .map_bits = SlotMap::kBits,
             .file_suffix = ".qcow2",
             .map_in_file = true,
             .has_pool = false,
             .open = open_qcow2_policy,
             .require_base = require_base_of_qcow2},
  };
  return kPolicies;
}

const Policy& find_policy(std::string_view name, std::span<const Policy> among) {
  std::string known;
  for (const Policy& policy : among) {
    if (policy.name == name) return policy;
    known += (known.empty() ? "" : ", ") + std::string(policy.name);
  }
  throw Error::with_message(EINVAL,
                            "policy '" + std::string(name) + "': unknown; there is: " + known);
}

}  // namespace cowfs
