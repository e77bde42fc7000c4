#pragma once

#include <functional>
#include <string>

#include "store/check_report.h"
#include "store/db.h"

namespace cowfs {

/// Verifies the database itself: its schema against that of a new catalog, SQLite's own integrity,
/// and the types of all values. False, with findings, if what is in it cannot be trusted.
bool check_database(Database& database, CheckReport& report);

/// Has a copy of the catalog written beside it, durably: `suffix` is added to its name, and a
/// number behind it if there is one already. `copy_to` gets its path, which is returned.
std::string save_catalog(const std::function<void(const std::string& path)>& copy_to,
                         const std::string& catalog_path,
                         const std::string& suffix = ".before-repair");

}  // namespace cowfs
