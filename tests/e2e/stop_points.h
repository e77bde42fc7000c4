#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "store/stop_point.h"

namespace cowfs::e2e {

// A file of it is shared between a test and the servers that it kills; COWFS_STOP_POINTS names it.
// It may be mapped by any number of processes.
struct StopOrders {
  struct Order {
    std::atomic<int32_t> times;   // how often a process is to be killed there still
    std::atomic<int32_t> passes;  // how often it is passed before
    std::atomic<uint32_t> kills;  // how many were
  };
  Order orders[kStopPoints];

  Order& at(StopPoint point) { return orders[static_cast<unsigned>(point)]; }
};

constexpr const char* kStopOrdersVariable = "COWFS_STOP_POINTS";

}  // namespace cowfs::e2e
