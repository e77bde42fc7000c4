#include "fs/tuning.h"

#include <fcntl.h>
#include <malloc.h>
#include <spdlog/logger.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>

#include "store/error.h"
#include "store/file.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

namespace cowfs {
namespace {

constexpr int kLargeAllocation = 256 << 10;
constexpr std::string_view kOomScore = "-900";
constexpr std::string_view kMaxRatio = "100";
constexpr std::string_view kStrictLimit = "0";
constexpr std::string_view kReadAhead = "4096";

/// Sysfs and procfs take a value in one write.
void put(const std::string& path, std::string_view value) {
  File(path, O_WRONLY).write(std::as_bytes(std::span(value)), 0);
}

}  // namespace

bool prepare_process(spdlog::logger& log) {
  // What a commit copies for a moment goes back to the system; by itself glibc would come to keep
  // it.
  ::mallopt(M_MMAP_THRESHOLD, kLargeAllocation);
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  // For the buffers; later the server may not lock memory beyond its limit.
  const rlimit locked{.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
  ::setrlimit(RLIMIT_MEMLOCK, &locked);
  try {
    put("/proc/self/oom_score_adj", kOomScore);
  } catch (const Error& error) {
    log.debug("oom score: {}", error.what());
  }
  return ::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0;
}

void tune_bdi(uint64_t device, bool dirty_limits, spdlog::logger& log) {
  const std::string folder =
      "/sys/class/bdi/" + std::to_string(major(device)) + ":" + std::to_string(minor(device)) + "/";
  const auto set = [&](const char* name, std::string_view value) {
    try {
      put(folder + name, value);
    } catch (const Error& error) {
      log.warn("tuning: {}: buffered I/O will be slower", error.what());
    }
  };
  set("read_ahead_kb", kReadAhead);
  if (!dirty_limits) {
    log.warn(
        "tuning: dirty limits left alone, since PR_SET_IO_FLUSHER is refused (it needs "
        "CAP_SYS_RESOURCE): buffered writes will be slower; -o tune lifts them all the same");
    return;
  }
  set("max_ratio", kMaxRatio);
  // Since Linux 6.2; before, max_ratio alone is what there is.
  if (::access((folder + "strict_limit").c_str(), F_OK) == 0) set("strict_limit", kStrictLimit);
}

}  // namespace cowfs
