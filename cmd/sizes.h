#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace cowfs {

/// Bytes of a size as people write it: "4096", "64K", "1.5G", "20GiB"; units K, M, G, T and P are
/// powers of 1024, in either case. Part of a byte is dropped. UsageError: EINVAL for anything else,
/// ERANGE for 2^63 and more.
uint64_t parse_size(std::string_view text);

/// As parse_size, for an image: EFBIG where none can have it.
uint64_t parse_image_size(std::string_view text);

/// As parse_size, for the size of a store's chunks: EINVAL where no chunk can have it.
uint32_t parse_chunk_size(std::string_view text);

/// For people: "512 B", "1.5 GiB", "16 MiB".
std::string format_size(uint64_t bytes);

/// What part `own_bytes` is of `size`, in percent from 0 to 100 with one decimal.
double private_percent(uint64_t own_bytes, uint64_t size);

}  // namespace cowfs
