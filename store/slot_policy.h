#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "store/policy.h"
#include "store/slot_layer.h"
#include "store/synchronized.h"

namespace cowfs {

/// What the catalog had of layers that it has forgotten, until they give it back.
using ForgottenSlots = Synchronized<std::map<uint64_t, std::vector<SlotRun>>>;

/// A policy whose layers have their chunks in slots, and their maps in the catalog; see
/// slot_policy.cc. What is left to say is where the slots are.
class SlotPolicy : public StorePolicy {
 public:
  /// Both outlive it.
  SlotPolicy(const PolicyContext& context, SlotSpace& space);

  std::unique_ptr<Layer> layer(const LayerRow& row) override;
  void forget(Catalog::Change& change, uint64_t layer) override;

 private:
  const PolicyContext& context_;
  SlotSpace& slot_space_;
  ForgottenSlots forgotten_;
};

}  // namespace cowfs
