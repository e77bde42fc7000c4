#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "store/base.h"
#include "store/policy.h"

namespace cowfs {

/// Bytes of an image.
struct ByteRange {
  uint64_t offset;
  uint64_t length;
};

/// One thing that a check found.
struct Finding {
  enum class Severity {
    damage,  ///< something is lost, or cannot be as it is
    leak,    ///< nothing is lost, but space is taken by what nobody needs
    note,    ///< nothing is wrong, but it is worth knowing
  };
  Severity severity;
  std::string kind;                  ///< a word for programs; cowfs-check(8) lists them
  std::string image;                 ///< its name; empty if this is about no image
  uint64_t layer = 0;                ///< 0: about none
  std::optional<ByteRange> range{};  ///< of the image
  uint64_t bytes = 0;                ///< of a leak: the space that it takes, if that is known
  std::string what;                  ///< for people, without image and range
  std::string remedy;       ///< if it can be repaired what repair does, "gives the space back" say;
                            ///< else what a person can do
  bool repairable = false;  ///< by a repair of the store at rest
  bool repaired = false;
};

std::string_view name_of(Finding::Severity severity);

struct CheckResult {
  uint64_t images = 0;
  uint64_t damage = 0;        ///< findings that are not repaired
  uint64_t leaks = 0;         ///< likewise
  uint64_t leaked_bytes = 0;  ///< of those leaks, as far as they are known in bytes
  uint64_t repaired = 0;
};

struct CheckOptions {
  bool repair = false;
  std::function<void(const Finding&)> receive;
  /// Told now and then how many bytes of CoW space are looked through, of how many.
  std::function<void(uint64_t done, uint64_t total)> progress = [](uint64_t, uint64_t) {};
  /// Asked now and then; once it answers true the check throws ECANCELED.
  std::function<bool()> cancelled = [] { return false; };
  std::span<const Policy> policies = cowfs::policies();  ///< that there are
};

/// Verifies a store that nobody has open; takes its lock (EBUSY names who has it). Without repair
/// it changes nothing but the lock's text. Throws where it cannot look: no store, no permission, a
/// newer format. A store that is wrong in any way leads to findings.
CheckResult check_store(const std::string& directory, const CheckOptions& options);

/// As Store::compare_base, of a store that nobody has open: also where the base would be refused.
/// `base_path`: where the base lies now; none: where it was last.
bool compare_base(const std::string& directory, const std::optional<std::string>& base_path,
                  const CheckOptions& options);

}  // namespace cowfs
