#pragma once

#include <functional>
#include <optional>
#include <string>

#include "store/catalog.h"

namespace cowfs {

/// Runs `look` in a process of its own that may do only what a server may, with no base and nothing
/// but the store: a catalog may be a stranger's, and what it says of the base has to be known
/// before the server can give up its own rights. Of the row, what is needed to open the base comes
/// back. Errors are passed on. The calling thread must be the only one.
std::optional<BaseRow> look_apart(const std::string& store,
                                  const std::function<std::optional<BaseRow>()>& look);

}  // namespace cowfs
