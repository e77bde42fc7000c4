#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "store/policy.h"
#include "store/slot_map.h"
#include "store/synchronized.h"

namespace cowfs {

/// Room for chunks, in numbered slots of a chunk each: what an allocation policy has to say where
/// chunks may lie anywhere. Slots whose numbers follow each other lie behind each other in one
/// file. Thread-safe.
class SlotSpace {
 public:
  SlotSpace() = default;
  SlotSpace(const SlotSpace&) = delete;
  SlotSpace& operator=(const SlotSpace&) = delete;
  virtual ~SlotSpace() = default;

  /// Takes at most `want` > 0 slots that follow each other, for a layer that would like them to
  /// begin with one of `goals`, the first best. None: there is no room. May throw.
  [[nodiscard]] virtual std::optional<SlotRun> allocate(uint64_t want,
                                                        std::span<const uint64_t> goals) = 0;
  /// Takes these, which a process before this one had taken; false, with nothing taken, if one of
  /// them is taken already or cannot be.
  [[nodiscard]] virtual bool claim(SlotRun run) = 0;
  /// Of taken slots whose freeing is durable, and which nobody reads or writes any more: lets them
  /// be used again (I5). Does not throw for want of anything.
  virtual void give_back(std::span<const SlotRun> runs) = 0;

  /// Whether there is such a slot.
  [[nodiscard]] virtual bool has(uint64_t slot) = 0;
  struct Place {
    const File* file;
    uint64_t offset;  ///< bytes
  };
  /// Where a slot lies that there is.
  [[nodiscard]] virtual Place at(uint64_t slot) = 0;
  /// Whether the host tells data from holes in what was never written.
  [[nodiscard]] virtual bool shows_holes() = 0;

  /// Makes durable all that was written before the call.
  virtual void sync() = 0;
  /// How often that has failed: what was written before, and not synced well since, may be lost
  /// (I8), whichever layer wrote it.
  [[nodiscard]] virtual uint64_t failures() = 0;
  /// Lets go of what the host has cached and need not write.
  virtual void drop_cached() = 0;

  /// What messages call it.
  [[nodiscard]] virtual std::string title() = 0;
};

/// What the catalog had of layers that it has forgotten, until they give it back.
using ForgottenSlots = Synchronized<std::map<uint64_t, std::vector<SlotRun>>>;

/// A policy whose layers have their chunks in slots; see slot_layer.cc. What is left to say is
/// where the slots are.
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
