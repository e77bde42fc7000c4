#pragma once

#include <cstdint>
#include <functional>

#include "store/chunk_size.h"
#include "store/layer.h"

namespace cowfs {

/// Calls `visit` for each flaw of an active layer in [0, end), in pieces that a repair may hold the
/// lock of, and `advance` with the bytes looked through since its last call.
void for_each_flaw(Layer& layer, uint64_t end, const std::function<void(const Flaw&)>& visit,
                   const std::function<void(uint64_t)>& advance);

/// Where a check of a layer ends, of an image that ends at `size`: both are looked through.
uint64_t check_end(const Layer& layer, uint64_t size, ChunkSize chunk);

}  // namespace cowfs
