// The server reads what strangers wrote: catalogs, images, requests. Should it be made to do what
// it is not meant to, it has the base (with its backing files) to read, its own store, and little
// else.
//
// What it needs of the outside is done by others: the keeper mounts, unmounts, opens the log again
// and runs the command of a watermark; commands look for who uses a mount, and open whatever they
// are given. Nothing here keeps a keeper from taking descriptors of the server (pidfd_getfd(2)):
// giving up capabilities leaves a process dumpable, which matters where both are an ordinary
// user's, and Landlock restricts whom the server may trace, not who traces it.

#include "fs/sandbox.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <malloc.h>
#include <spdlog/logger.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <ctime>
#include <nlohmann/json.hpp>
#include <string_view>
#include <thread>

#include "store/db.h"
#include "store/descriptor.h"
#include "store/error.h"

namespace cowfs {
namespace {

// ---- capabilities -------------------------------------------------------------------------------

struct Kept {
  unsigned number;
  const char* name;
};

/// With the reason for each; cowfs-mount(8) has the same list.
constexpr std::array<Kept, 2> kKept{{
    // Root's server uses bases and stores of other users, with modes that are for them alone.
    {CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"},
    // The lease on a base of another user, which tells of writers (I1).
    {CAP_LEASE, "CAP_LEASE"},
}};

constexpr uint64_t bit(unsigned number) { return uint64_t{1} << number; }

struct CapabilitySets {
  uint64_t effective = 0;
  uint64_t permitted = 0;
};

CapabilitySets capabilities() {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, 2> data{};
  if (::syscall(SYS_capget, &header, data.data()) != 0) throw Error{errno, "sandbox: capget"};
  return {.effective = data[0].effective | uint64_t{data[1].effective} << 32U,
          .permitted = data[0].permitted | uint64_t{data[1].permitted} << 32U};
}

void drop_capabilities() {
  uint64_t keep = 0;
  for (const Kept& capability : kKept) keep |= bit(capability.number);
  const CapabilitySets held = capabilities();
  if ((held.effective & bit(CAP_SETPCAP)) != 0) {
    // Until the kernel knows no more of them.
    for (unsigned number = 0; ::prctl(PR_CAPBSET_READ, number, 0, 0, 0) >= 0; ++number) {
      if (number < 64 && (keep & bit(number)) != 0) continue;
      if (::prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0) {
        throw Error{errno, "sandbox: bounding set"};
      }
    }
  }
  ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, 2> data{};
  data[0].effective = static_cast<uint32_t>(held.effective & keep);
  data[0].permitted = static_cast<uint32_t>(held.permitted & keep);
  data[1].effective = static_cast<uint32_t>((held.effective & keep) >> 32U);
  data[1].permitted = static_cast<uint32_t>((held.permitted & keep) >> 32U);
  if (::syscall(SYS_capset, &header, data.data()) != 0) throw Error{errno, "sandbox: capset"};
}

// ---- Landlock -----------------------------------------------------------------------------------

// Later than the headers of Debian 12.
constexpr uint64_t kAccessTruncate = 1ULL << 14;
constexpr uint64_t kAccessIoctlDevice = 1ULL << 15;

constexpr uint64_t kAccessAll = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1U) - 1;  // of version 1

constexpr uint64_t kBaseAccess = LANDLOCK_ACCESS_FS_READ_FILE;
constexpr uint64_t kProcAccess = LANDLOCK_ACCESS_FS_READ_FILE;
constexpr uint64_t kStoreAccess =
    LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_WRITE_FILE |
    LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_SYM |
    LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR | kAccessTruncate;

/// The first field of landlock_ruleset_attr, which is all that files need.
struct Handled {
  uint64_t files;
};

uint64_t handled_by(int version) {
  uint64_t handled = kAccessAll;
  if (version >= 2) handled |= LANDLOCK_ACCESS_FS_REFER;
  if (version >= 3) handled |= kAccessTruncate;
  if (version >= 5) handled |= kAccessIoctlDevice;
  return handled;
}

void allow(const Descriptor& rules, int fd, uint64_t access) {
  landlock_path_beneath_attr rule{};
  rule.allowed_access = access;
  rule.parent_fd = fd;
  if (::syscall(SYS_landlock_add_rule, rules.fd(), LANDLOCK_RULE_PATH_BENEATH, &rule, 0) != 0) {
    throw Error{errno, "sandbox: Landlock rule"};
  }
}

std::optional<int> restrict_files(std::span<const int> bases, const std::string& store,
                                  spdlog::logger& log) {
  const auto version = static_cast<int>(
      ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION));
  if (version < 1) {
    log.info("sandbox: no Landlock: {}: the server may open what its user may", error_text(errno));
    return std::nullopt;
  }
  const uint64_t handled = handled_by(version);
  const Handled attribute{.files = handled};
  const Descriptor rules(
      static_cast<int>(::syscall(SYS_landlock_create_ruleset, &attribute, sizeof(attribute), 0)),
      "sandbox: Landlock");
  for (const int base : bases) allow(rules, base, kBaseAccess);
  const Descriptor directory(::open(store.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC),
                             "sandbox: store");
  allow(rules, directory.fd(), kStoreAccess & handled);
  // For libfuse, which finds there in which groups a caller is, and for who has a store locked. No
  // other process's memory, descriptors or environment: Landlock lets nobody trace what is outside.
  const Descriptor proc(::open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC), "sandbox: /proc");
  allow(rules, proc.fd(), kProcAccess);
  if (::syscall(SYS_landlock_restrict_self, rules.fd(), 0) != 0) {
    throw Error{errno, "sandbox: Landlock"};
  }
  return version;
}

}  // namespace

Sandbox enter_sandbox(std::span<const int> bases, const std::string& store, spdlog::logger& log) {
  // What libraries would open later. The C library counts the processors when it makes the ninth of
  // its heaps, to find out how many it may make: it is told what it would find.
  ::mallopt(M_ARENA_MAX, static_cast<int>(8 * std::max(std::thread::hardware_concurrency(), 1U)));
  ::tzset();
  Database::seed_random();

  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) throw Error{errno, "sandbox: no_new_privs"};
  Sandbox sandbox;
  sandbox.landlock = restrict_files(bases, store, log);
  drop_capabilities();
  sandbox.no_new_privs = ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
  const uint64_t permitted = capabilities().permitted;
  for (const Kept& capability : kKept) {
    if ((permitted & bit(capability.number)) != 0) {
      sandbox.capabilities.emplace_back(capability.name);
    }
  }
  return sandbox;
}

nlohmann::json to_json(const Sandbox& sandbox) {
  return {{"landlock", sandbox.landlock ? nlohmann::json(*sandbox.landlock) : nlohmann::json()},
          {"capabilities", sandbox.capabilities},
          {"no_new_privs", sandbox.no_new_privs}};
}

}  // namespace cowfs
