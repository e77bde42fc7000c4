#pragma once

#include <spdlog/logger.h>

#include <cstdint>

namespace cowfs {

/// Prepares this process for standing below a block device, before it starts threads: its memory
/// allocations do not wait for writeback through itself (PR_SET_IO_FLUSHER, Linux 5.6), the
/// out-of-memory killer takes others first, and it may open as many files as the system lets it.
/// Returns whether the first succeeded. What is not allowed is left.
bool prepare_process(spdlog::logger& log);

/// Lifts the limits that the kernel sets for the mount with this st_dev: max_ratio 100,
/// strict_limit 0, read_ahead_kb 4096 in /sys/class/bdi. Without them, dirty pages of the mount may
/// take 1 % of memory and buffered writes reach a tenth of a disk's speed. Says once in the log
/// what could not be set.
void tune_bdi(uint64_t device, spdlog::logger& log);

}  // namespace cowfs
