#include "store/chunk_map.h"

#include <algorithm>
#include <bit>
#include <cerrno>

#include "store/error.h"

namespace cowfs {
namespace {

constexpr uint64_t kLowBits = 0x5555555555555555;
constexpr uint64_t kChunksPerWord = 32;

uint64_t pattern(ChunkState state) { return kLowBits * static_cast<uint64_t>(state); }

/// Mask over the two bits of chunks [first, first + count) of a word; count in 1..32.
uint64_t mask(uint64_t first, uint64_t count) {
  const uint64_t bits = count == kChunksPerWord ? ~uint64_t{0} : (uint64_t{1} << (2 * count)) - 1;
  return bits << (2 * first);
}

}  // namespace

std::optional<uint64_t> last_present(const MapBits& bits) {
  for (size_t i = bits.size(); i-- > 0;) {
    const uint64_t present = bits[i] & pattern(ChunkState::present);
    if (present == 0) continue;
    return i * kChunksPerWord + (63 - static_cast<uint64_t>(std::countl_zero(present))) / 2;
  }
  return std::nullopt;
}

bool valid(const MapBits& bits) {
  return std::all_of(bits.begin(), bits.end(),
                     [](uint64_t word) { return (word & (word >> 1) & kLowBits) == 0; });
}

std::pair<ChunkState, uint64_t> ChunkMap::run(uint64_t chunk, uint64_t limit) {
  if (chunk >= kMaxChunks) return {ChunkState::absent, limit};
  limit = std::min(limit, kMaxChunks - chunk);
  ChunkState state{};
  bool first = true;
  uint64_t length = 0;
  while (length < limit) {
    const uint64_t at = chunk + length;
    const uint64_t page = at / kChunksPerPage;
    const uint64_t in_page = at % kChunksPerPage;
    const auto [words, pages] = look(page);
    if (words == nullptr) {
      if (first) {
        state = ChunkState::absent;
        first = false;
      }
      if (state != ChunkState::absent) break;
      length += pages * kChunksPerPage - in_page;
      continue;
    }
    const uint64_t in_word = in_page % kChunksPerWord;
    // Acquire: who sees "present" here sees the data that was written before the bit was set.
    const uint64_t word =
        (*words)[in_page / kChunksPerWord].load(std::memory_order_acquire) >> (2 * in_word);
    if (first) {
      state = static_cast<ChunkState>(word & 3);
      first = false;
    }
    const uint64_t available = kChunksPerWord - in_word;
    const uint64_t equal = std::min<uint64_t>(
        static_cast<uint64_t>(std::countr_zero(word ^ (pattern(state) >> (2 * in_word)))) / 2,
        available);
    length += equal;
    if (equal < available) break;
  }
  return {state, std::min(length, limit)};
}

void ChunkMap::set(uint64_t first, uint64_t count, ChunkState state) {
  if (first + count > kMaxChunks) throw Error(EFBIG, "chunk map");
  while (count > 0) {
    const uint64_t page = first / kChunksPerPage;
    MapArena::Page& words = words_for_change(page);
    uint64_t in_page = first % kChunksPerPage;
    while (count > 0 && in_page < kChunksPerPage) {
      const uint64_t in_word = in_page % kChunksPerWord;
      const uint64_t step = std::min(count, kChunksPerWord - in_word);
      const uint64_t bits = mask(in_word, step);
      std::atomic<uint64_t>& word = words[in_page / kChunksPerWord];
      uint64_t old = word.load(std::memory_order_relaxed);
      while (!word.compare_exchange_weak(old, (old & ~bits) | (pattern(state) & bits))) {
      }
      in_page += step;
      first += step;
      count -= step;
    }
    changed(page);
  }
}

}  // namespace cowfs
