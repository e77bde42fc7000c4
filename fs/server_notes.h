#pragma once

#include <atomic>
#include <cstdint>

#include "fs/saved_init.h"
#include "store/live_memory.h"

namespace cowfs {

/// What each server of a mount leaves to the next one in LiveMemory::notes. Bytes that a program
/// did not know of are zero: that means what it did.
struct ServerNotes {
  SavedInit init;
  /// Not 0: what finds no space does not wait any more, to the mount's end.
  std::atomic<uint32_t> waiting_ended;
  /// The highest watermark that was told of and not left, percent; 0: none.
  std::atomic<uint32_t> watermark;
};
static_assert(sizeof(ServerNotes) <= LiveMemory::kNoteBytes);

inline ServerNotes& server_notes(const LiveMemory& memory) {
  return *static_cast<ServerNotes*>(memory.notes());
}

}  // namespace cowfs
