#include "store/check_space.h"

#include <algorithm>

namespace cowfs {

void for_each_flaw(Layer& layer, uint64_t end, const std::function<void(const Flaw&)>& visit,
                   const std::function<void(uint64_t)>& advance) {
  constexpr uint64_t kWindow = 1 << 30;
  constexpr uint64_t kPiece = 8 << 20;
  for (uint64_t window = 0; window < end; window += kWindow) {
    const uint64_t stop = std::min(window + kWindow, end);
    for (uint64_t at = window; at < stop;) {
      const std::optional<Flaw> flaw = layer.next_flaw(at, stop - at);
      if (!flaw) break;
      at = flaw->offset + flaw->length;
      for (uint64_t piece = flaw->offset; piece < at; piece += kPiece) {
        visit({flaw->kind, piece, std::min(kPiece, at - piece)});
      }
    }
    advance(stop - window);
  }
}

uint64_t check_end(const Layer& layer, uint64_t size, ChunkSize chunk) {
  return chunk.up(std::min(std::max(size, layer.space_end()), kMaxImageSize));
}

}  // namespace cowfs
