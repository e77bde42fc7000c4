#pragma once

namespace cowfs {

/// Marks this process as the one keeper of the mount whose live memory `live` is, and returns the
/// descriptor that is the mark, the caller's: as long as it is open nobody else can be, and it ends
/// with the process. EBUSY if somebody is already. Others who hold `live` do not count.
int claim_mount(int live);

}  // namespace cowfs
