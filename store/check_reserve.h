#pragma once

#include <string>

#include "store/check_report.h"

namespace cowfs {

/// Looks at the reserve of the store `directory`: whether it is a file of its own, and whole as far
/// as the disk has room for it.
void check_reserve(const std::string& directory, CheckReport& report);

}  // namespace cowfs
