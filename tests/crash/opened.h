#pragma once

#include <optional>
#include <string>

#include "tests/crash/disk.h"
#include "tests/crash/oracle.h"
#include "tests/crash/scenario.h"

namespace cowfs::crash {

/// What a state turned out to be when it was opened.
struct Opened {
  std::optional<std::string> error;  ///< it cannot be opened, or not be used
  Shown shown;
};

/// Makes the state's files below `directory` and opens the store there with the ordinary code,
/// which needs no repair (I6); reads everything; then writes to an image, grows it, flushes, closes
/// the store, lets the check look for damage, opens the store again and compares. `may_be_new`:
/// where there is no store yet one is made.
Opened open_state(const Disk& disk, const Scenario& scenario, const std::string& directory,
                  const std::string& base_path, bool may_be_new);

}  // namespace cowfs::crash
