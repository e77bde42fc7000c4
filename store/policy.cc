#include "store/policy.h"

#include <array>
#include <cerrno>

#include "store/error.h"
#include "store/policy_sparse.h"

namespace cowfs {

std::span<const Policy> policies() {
  static constexpr std::array kPolicies{
      Policy{.name = "sparse", .default_chunk_size = 4096, .make_layer = make_sparse_layer},
  };
  return kPolicies;
}

const Policy& find_policy(std::string_view name) {
  std::string known;
  for (const Policy& policy : policies()) {
    if (policy.name == name) return policy;
    known += (known.empty() ? "" : ", ") + std::string(policy.name);
  }
  throw Error::with_message(EINVAL,
                            "policy '" + std::string(name) + "': unknown; there is: " + known);
}

}  // namespace cowfs
