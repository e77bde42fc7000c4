#pragma once

#include "store/check_catalog.h"

namespace cowfs {

/// Verifies of a store whose chunks lie in slots that no slot is used twice and none is lost: what
/// the maps of all layers name is what the catalog says is in use. After check_rows, on the same
/// database; says of layers whose maps cannot be trusted that they are not sound. With `in_use`
/// nothing is repaired.
void check_slots(Database& database, CheckedCatalog& catalog, bool in_use,
                 const RepairCatalog& repair, CheckReport& report);

}  // namespace cowfs
