#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "store/catalog.h"
#include "store/check_report.h"
#include "store/db.h"

namespace cowfs {

struct Policy;

/// Runs SQL on the catalog that is to be repaired, in one transaction that is durable when it
/// returns. False if nothing is to be repaired.
using RepairCatalog = std::function<bool(const std::string& sql)>;

/// A layer as check_catalog left it.
struct CheckedLayer {
  LayerRow row;
  std::string image;        ///< the name of its image, or "image 5" of one without
  uint64_t image_size = 0;  ///< bytes
  bool has_image = false;
  bool sound = true;         ///< the row and the whole map can be trusted
  bool has_present = false;  ///< the map says of some chunk that it is present
  bool removed = false;      ///< the catalog has forgotten it
};

struct CheckedCatalog {
  StoreRow store;
  const Policy* policy = nullptr;  ///< the store's
  BaseRow base;
  std::map<uint64_t, CheckedLayer> layers;
  uint64_t last_layer = 0;             ///< the highest number that a layer ever had
  std::optional<PoolGeneration> pool;  ///< of one that has a pool; none: it does not say
};

/// Verifies the rows of a sound database. With `in_use` it is a server's, which keeps images
/// without a name while somebody has them open, and may be about to shorten or lengthen others.
/// None, with findings, if nothing can be said of the rest of the store.
std::optional<CheckedCatalog> check_rows(Database& database, bool in_use,
                                         const RepairCatalog& repair, CheckReport& report);

}  // namespace cowfs
