// Policy `pool`
//
// The slots of all layers (slot_layer.cc) are those of one dense pool: a file or a block device. It
// has a size, and what is free in it is known from the catalog's pool_page, a bit for each slot,
// which is read when the store is opened.

#include "store/policy_pool.h"

#include "store/pool.h"
#include "store/slot_policy.h"

namespace cowfs {
namespace {

/// First of PoolPolicy's bases: layers need it to the end.
struct HasPool {
  Pool pool;
};

class PoolPolicy final : HasPool, public SlotPolicy {
 public:
  explicit PoolPolicy(const PolicyContext& context)
      : HasPool{Pool(*context.pool, context.chunk, context.catalog)},
        SlotPolicy(context, HasPool::pool) {}

  std::optional<Space> space() override { return HasPool::pool.space(); }
  Pool* pool() override { return &(HasPool::pool); }
};

}  // namespace

std::unique_ptr<StorePolicy> open_pool_policy(const PolicyContext& context) {
  return std::make_unique<PoolPolicy>(context);
}

}  // namespace cowfs
