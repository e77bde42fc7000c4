#pragma once

#include <spdlog/fwd.h>

#include <cstdint>

namespace cowfs {

/// Prepares this process for standing below a block device, before it starts threads: its memory
/// allocations do not wait for writeback through itself (PR_SET_IO_FLUSHER, Linux 5.6), the
/// out-of-memory killer takes others first, and it may open as many files and lock as much memory
/// as the system lets it. Returns whether the first succeeded. What is not allowed is left.
bool prepare_process(spdlog::logger& log);

/// Lifts the limits that the kernel sets for the mount with this st_dev, in /sys/class/bdi:
/// read_ahead_kb 4096 and, with `dirty_limits`, max_ratio 100 and strict_limit 0. Without the
/// latter, dirty pages of the mount may take 1 % of memory and buffered writes reach a tenth of a
/// disk's speed. The limits are there because a server that is throttled for dirty pages stalls its
/// own writeback: lift them where PR_SET_IO_FLUSHER succeeded. Says once in the log what is not
/// set.
void tune_bdi(uint64_t device, bool dirty_limits, spdlog::logger& log);

}  // namespace cowfs
