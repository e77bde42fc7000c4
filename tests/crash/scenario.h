#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/crash/faults.h"

namespace cowfs::crash {

/// One thing that is done to a store; does nothing where it cannot be done. Offsets and lengths in
/// bytes, images by name.
struct Step {
  enum class Kind {
    create,  ///< of `length` bytes, of the base's size where that is 0; `flag`: born empty
    remove,
    rename,
    exchange,
    write,  ///< fresh bytes; `content` says so
    make_zero,
    extend,
    resize,
    reserve,
    copy,  ///< from `other`
    flush,
    flush_all,
    release,     ///< ends the use of the image, and closes its file if it can be
    checkpoint,  ///< of the catalog's log
    reopen,      ///< the store is closed in order
    together,    ///< `threads` at once
  };
  enum class Content { fresh, zeros, base };

  Kind kind;
  std::string image = {};
  std::string other = {};
  uint64_t offset = 0;
  uint64_t other_offset = 0;
  uint64_t length = 0;
  bool flag = false;
  Content content = Content::fresh;
  /// The process is killed after so many changes of files that the step makes, or after the step,
  /// and the store is opened again; 0: it is not.
  unsigned kill_after = 0;
  std::vector<Step> during = {};  ///< in the middle of the syncs that a flush makes, one each
  std::vector<std::vector<Step>> threads = {};

  [[nodiscard]] std::string text() const;
};

/// A small run over a small base, all of it decided by the seed.
struct Scenario {
  uint64_t seed = 0;
  uint64_t base_size = 0;
  uint32_t chunk_size = 0;
  std::string policy = "sparse";
  bool with_making = false;  ///< the store's making is a part of the run
  bool reflinks = false;     ///< the host's file system has them
  std::vector<Step> steps;
  std::optional<Fault> fault = {};  ///< in the steps, not while the store is made

  [[nodiscard]] std::string text() const;
  [[nodiscard]] bool has_threads() const;
};

/// `with_fault`: calls fail, and nothing is killed.
Scenario make_scenario(uint64_t seed, bool with_fault = false);

}  // namespace cowfs::crash
