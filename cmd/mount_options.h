#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "fs/server.h"

namespace cowfs {

/// What `-o` lists say.
struct MountOptions {
  bool read_only = false;
  bool allow_other = false;
  std::optional<uid_t> uid;
  std::optional<uint32_t> max_read;
  std::optional<gid_t> gid;
  std::optional<mode_t> umask;
  CacheMode cache = CacheMode::writeback;
  std::optional<FullMode> full;                     ///< none: what goes with the cache
  std::optional<std::vector<unsigned>> watermarks;  ///< percent
  std::string on_watermark;
  Resend resend = Resend::unknown;  ///< unknown: as the kernel can
  bool tune = true;
  bool tune_always = false;
  std::vector<std::string> fuse;  ///< FUSE's own, as libfuse wants them
};

/// Splits lists at commas as mount(8) does, where a value in "..." may hold some, and keeps the
/// order, so that of two options that contradict each other the last one counts. What is meant for
/// mount(8) and init systems is passed over. UsageError for an option that is unknown or has a bad
/// value.
MountOptions parse_mount_options(const std::vector<std::string>& lists,
                                 bool allow_other_by_default);

}  // namespace cowfs
