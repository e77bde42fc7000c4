#pragma once

#include <cstdint>

namespace cowfs {

/// Faults in the order that makes commits safe, and in what is done where a call fails. The crash
/// explorer (tests/crash) puts them in, one at a time, to prove that it finds what they do.
enum class Sabotage : uint8_t {
  none,
  commit_before_sync,   ///< the map is committed before its data is synced
  no_data_sync,         ///< the data is never synced
  reuse_at_once,        ///< freed space is given back before its freeing is committed
  synchronous_normal,   ///< SQLite does not sync its log at a commit
  commit_live_page,     ///< the map page of the moment is committed, not the copy
  punch_before_commit,  ///< what a commit frees is punched before it
  no_directory_sync,    ///< a new CoW file is synced, its directory is not
  trust_failed_sync,    ///< a sync that failed counts as done
  trust_short_read,     ///< half a read counts as all of it
};

#ifdef COWFS_SABOTAGE
inline Sabotage active_sabotage = Sabotage::none;
inline bool sabotaged(Sabotage what) { return active_sabotage == what; }
#else
constexpr bool sabotaged(Sabotage) { return false; }
#endif

}  // namespace cowfs
