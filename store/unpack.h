#pragma once

#include <cstddef>
#include <span>

namespace cowfs {

/// How a cluster of an image file is compressed.
enum class Packing {
  deflate,  ///< a bare deflate stream (RFC 1951), without a zlib header
  zstd,     ///< zstd frames (RFC 8878)
};

/// Fills all of `bytes` from `packed`, which may go on behind its end with something else. False if
/// it does not hold just as much. Takes no memory that depends on what `packed` says (I10).
[[nodiscard]] bool unpack(Packing packing, std::span<const std::byte> packed,
                          std::span<std::byte> bytes);

}  // namespace cowfs
