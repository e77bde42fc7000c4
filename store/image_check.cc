// A check of an image that is in use
//
// Map and CoW file are looked at without locks, so what seems wrong may be a chunk that changes
// just now. It is looked at again under its chunks' lock, which everything holds that changes their
// state: what is wrong then is wrong for good. What was trimmed and waits for a commit, or for its
// space to be given back after one, is known to the layer and is no flaw (layer.h).

#include "store/check_space.h"
#include "store/image.h"

namespace cowfs {

void Image::check(bool repair, const std::function<void(const Flaw&, bool repaired)>& receive,
                  const std::function<void(uint64_t)>& advance) {
  const ChunkSize chunk = context_.chunk;
  const auto look_again = [&](const Flaw& suspect) {
    const uint64_t end = suspect.offset + suspect.length;
    const RangeLock::Guard guard =
        chunks_.lock({chunk.chunk_of(suspect.offset), chunk.chunk_of(end - 1) + 1});
    for (uint64_t at = suspect.offset; at < end;) {
      const std::optional<Flaw> flaw = layer_->next_flaw(at, end - at);
      if (!flaw) return;
      at = flaw->offset + flaw->length;
      const bool repaired = repair && flaw->kind == Flaw::Kind::leaked;
      if (repaired) layer_->reclaim(flaw->offset, flaw->length);
      receive(*flaw, repaired);
    }
  };
  for_each_flaw(*layer_, check_end(*layer_, size(), chunk), look_again, advance);
}

}  // namespace cowfs
