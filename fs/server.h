#pragma once

#include <spdlog/fwd.h>
#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fs/saved_init.h"
#include "store/store.h"

namespace cowfs {

enum class CacheMode { writeback, none };
/// What becomes of a write for which there is no space (I7).
enum class FullMode { wait, error };

/// All that a server is told.
struct ServerConfig {
  Store::Options store;     ///< its `mount` and `log` are filled in by the server
  std::string mount_point;  ///< absolute, resolved
  bool read_only = false;
  bool allow_other = false;
  std::optional<uid_t> uid;  ///< shown as the owner of everything
  std::optional<gid_t> gid;
  std::optional<mode_t> umask;  ///< taken from 0777, or 0666 of images
  CacheMode cache = CacheMode::writeback;
  FullMode full = FullMode::wait;
  std::vector<unsigned> watermarks{80, 90, 95};  ///< percent of the store's file system
  std::string on_watermark;                      ///< a command for sh(1), or nothing
  std::optional<uint32_t> max_read;              ///< bytes of the largest read request
  Resend resend = Resend::unknown;               ///< unknown: as the kernel can
  std::vector<std::string> fuse_options;         ///< passed on to libfuse, "nosuid" say
  std::shared_ptr<spdlog::logger> log;
  std::function<void(int fd)> use_log;  ///< has the log go on with a copy of this descriptor
};

class KeeperLink;

/// Opens the store, has the keeper mount, and serves until the file system is unmounted; then makes
/// everything durable and gives the store up. If the keeper hands over what a server before this
/// one left, goes on with that instead. Throws Error, with everything undone, before the keeper was
/// told that the file system is usable. SIGTERM and SIGINT are passed on to the keeper; without one
/// the log says how to unmount. The calling thread must be the only one. Returns whether all is
/// durable that was not refused with an error; does not return when the keeper asks for a
/// hand-over.
bool serve(ServerConfig config, KeeperLink& keeper);

}  // namespace cowfs
