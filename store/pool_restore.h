#pragma once

#include <string>

namespace cowfs {

/// What became of the header of a store's pool.
struct RestoredHeader {
  std::string pool;   ///< its path
  std::string found;  ///< what was in its place, in words; empty: the header is sound, and stays
  std::string saved;  ///< the path of a copy of that; empty: there was nothing to save
};

/// Writes the header of the pool of a store that is not open anew, as the catalog knows it. Error,
/// with nothing changed, where the pool has a valid header that is not this one, or where more than
/// the header is not what it was, so that the pool may be another file or device: that, `force`
/// disregards.
RestoredHeader restore_pool_header(const std::string& directory, bool force);

}  // namespace cowfs
