#pragma once

#include <cstdint>

namespace cowfs {

/// Moments at which a server's death could do harm. Where this is compiled for tests, a test can
/// have the process killed at them (tests/e2e/stop_points.h); elsewhere they are nothing.
enum class StopPoint : uint8_t {
  request_read,     ///< a request was read, and nothing is done yet
  data_written,     ///< data lies in the CoW file, the map does not say so
  bit_set,          ///< the map says so, and nobody was told
  commit_begun,     ///< the catalog's transaction has the map pages, and is open
  committed,        ///< it is committed, the map in memory does not know
  answer_not_sent,  ///< all is done but the answer
  answer_sent,      ///< the answer is sent, and the request may still be taken for unanswered
  handing_over,     ///< the threads have ended, for another server
  taking_over,      ///< nothing was asked for again yet
  taken_over,       ///< it was, and no thread runs yet
};
constexpr unsigned kStopPoints = 10;

#ifdef COWFS_STOP_POINTS
void stop_point(StopPoint point) noexcept;
#else
inline void stop_point(StopPoint /*point*/) noexcept {}
#endif

}  // namespace cowfs
