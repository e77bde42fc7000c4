#pragma once

#include "store/base.h"
#include "store/catalog.h"
#include "store/check_report.h"

namespace cowfs {

/// Verifies that the base is what the store was made for (I1), as far as the fingerprint tells.
void check_base(const Base& base, const BaseRow& recorded, CheckReport& report);

// What follows reads all of the base; see CheckOptions for progress and cancelling. EBUSY if the
// base changes meanwhile.

/// Records the checksum of the whole base, durably. ESTALE if the base may not be the one that the
/// store was made for: that would be accepted with it.
void record_base(Catalog& catalog, const Base& base, const CheckOptions& options);

/// Whether the whole base is as it was when its checksum was recorded; ENODATA if none was. A base
/// that is, is accepted, wherever it lies now, and counts as not written to. One that is not, where
/// the store looks for its base, counts as written to from now on.
bool compare_base(Catalog& catalog, const Base& base, const CheckOptions& options);

}  // namespace cowfs
