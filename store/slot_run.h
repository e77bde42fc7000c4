#pragma once

#include <cstdint>

namespace cowfs {

/// Neighbouring slots of a space.
struct SlotRun {
  uint64_t first;
  uint64_t count;
};

/// Where a layer was given slots last, so that its next ones follow them. Belongs to the space that
/// gives them: guarded by its lock, and kept by the layer.
struct SlotStream {
  uint64_t next = UINT64_MAX;  ///< behind the slot that was given last
  uint64_t end = 0;            ///< behind the last slot that was meant for this layer
  uint64_t regions = 0;        ///< how many were meant for it last
};

}  // namespace cowfs
