#pragma once

#include <sys/ioctl.h>

#include <array>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace cowfs {

/// How commands speak to the server of a mount: one ioctl(2) on a file or the directory of the
/// mount, opened read-only. The buffer carries a JSON text there and one back, each ended by a NUL
/// byte.
///
/// Request: {"ask": WHAT, ...}; the answer is an object, or an errno value.
///
///   info             facts of the directory or an image
///   end_waiting      on the directory or an image: ends with an error what waits for space, and
///                    lets nothing wait any more
///   set_space_limit  on an image: "bytes": a number or null
///   check, check_progress
///                    on the directory: see fs/check_job.h
///   descriptors      on the directory, of a server whose keeper is gone (else EBUSY), for another
///                    keeper: server_pid, restarts, last_restart_ns (0: never), and
///                    descriptors: their numbers in the server, by the keeper's names
///   grow_pool        on the directory: "bytes": a number, or null of a pool on a device; the
///   answer
///                    has "pool", as the facts have it, or "error", why it did not grow
///   clear_failure    on an image that nobody else has open: it takes writes again
///
/// Of an image it is asked on the directory, with "image": NAME. On the image's own file it can be
/// asked too, but under the writeback cache the close(2) that follows waits for the kernel to write
/// back what it holds of the image, for ever on a full disk.
///
/// All but info is for root and the user that the server runs as.
///
/// Facts of the directory: mount, base, base_size, base_written_ns (or null), store, chunk_size,
/// policy, pool (null, or path, device, size, free_bytes), format_version, images, own_bytes,
/// free_bytes, total_bytes, used_percent (all three null if the store's directory is gone),
/// watermark (percent or null), cache, full ("error" also after end_waiting), parked, read_only,
/// server_pid, keeper_pid (null: it is gone), restarts, last_restart_ns (or null), resend ("kernel"
/// or "slots"), sandbox (see Sandbox), version. Of an image: cow_file (or null), own_bytes, openers
/// (open descriptions, the asking one included), layer, created_ns, failure (why it takes no
/// writes, or null), space_limit (bytes or null), parked (requests that wait for space).
struct ControlMessage {
  std::array<char, 8192> text;
};

constexpr unsigned long kControlRequest = _IOWR('c', 0x0f, ControlMessage);

/// Asks the server of the mount that `path` lies in. Throws Error: ENOTTY if that is no cowfs
/// mount, ENOTCONN if its server is dead. Root asks a mount that a user made for himself alone as
/// that user, in a thread.
nlohmann::json ask_server(const std::string& path, const nlohmann::json& question);
/// Asks for the facts.
nlohmann::json ask_server(const std::string& path);

/// Writes `json` into `message`; EMSGSIZE if it does not fit.
void pack(const nlohmann::json& json, ControlMessage& message);
/// EINVAL if the text is no JSON object.
nlohmann::json unpack(const ControlMessage& message);

}  // namespace cowfs
