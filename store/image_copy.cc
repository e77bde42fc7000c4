// Copying between images of one store
//
// A range is copied run by run of the source. Whole chunks that go to whole chunks are not read:
//   absent, same place    become absent here: both read the base
//   zero, or behind what the parent shows: become zero here
//   present               the host's reflink, if it has one
// Everything else is read and written. What the target held before is taken away as by a trim.
//
// How chunks come to be shared with the base is in image_share.cc.

#include <algorithm>
#include <cerrno>

#include "store/image.h"

namespace cowfs {
namespace {

constexpr uint64_t kMostAtOnce = uint64_t{1} << 30;
constexpr uint64_t kCopyPiece = 1 << 20;

}  // namespace

uint64_t Image::copy_from(Image& source, uint64_t source_offset, uint64_t offset, uint64_t length) {
  check_writable();
  const uint64_t source_size = source.size();
  if (source_offset >= source_size) return 0;
  length = std::min(length, source_size - source_offset);
  if (length > kMostAtOnce) length = context_.chunk.down(offset + kMostAtOnce) - offset;
  uint64_t done = 0;
  while (done < length) {
    const uint64_t copied = copy_piece(source, source_offset + done, offset + done, length - done);
    if (copied == 0) break;  // the source has become shorter
    done += copied;
  }
  return done;
}

uint64_t Image::copy_piece(Image& source, uint64_t source_offset, uint64_t offset,
                           uint64_t length) {
  const ChunkSize chunk = context_.chunk;
  if (!chunk.aligned(offset) || !chunk.aligned(source_offset)) {
    // Up to the next border of the target, where chunks may match again; else piece by piece.
    const uint64_t to_border = chunk.up(offset) - offset;
    const bool matches = chunk.aligned(offset - source_offset);
    const uint64_t piece = matches && to_border > 0 ? to_border : kCopyPiece;
    return copy_data(source, source_offset, offset, std::min(length, piece));
  }

  const uint64_t reclaims = source.reclaims_.load();
  std::optional<Grace::Hold> held;
  held.emplace(source.in_place_);  // what is cloned from stays the source's
  const Run run = source.layer_->find(source_offset, length);
  if (run.state != ChunkState::present) held.reset();
  const bool to_the_end =
      source_offset + run.length == source.size() && offset + run.length >= size();
  const uint64_t whole = chunk.down(run.length);
  const uint64_t limit = source.layer_->parent_limit();
  const bool hole =
      run.state == ChunkState::zero || (run.state == ChunkState::absent && source_offset >= limit);

  if (run.state == ChunkState::absent && !hole && source_offset == offset) {
    const uint64_t shared = to_the_end ? run.length : whole;
    Shared result{false, shared, std::nullopt};
    if (shared > 0) result = share_with_base(limit, offset, shared);
    while (result.busy) {
      static_cast<void>(chunks_.lock(*result.busy));  // waits by taking and leaving it
      result = share_with_base(limit, offset, shared);
    }
    if (result.done) return shared;
  } else if (hole && (whole > 0 || to_the_end)) {
    const uint64_t zeros = to_the_end ? run.length : whole;
    extend(offset + zeros);
    make_zero(offset, zeros);
    return zeros;
  } else if (run.state == ChunkState::present && whole > 0) {
    const Run piece{run.state, std::min(whole, kMostAtOnce), run.file, run.file_offset};
    const auto intact = [&] { return source.reclaims_.load() == reclaims; };
    if (clone_present(piece, offset, intact)) return piece.length;
  }
  held.reset();
  return copy_data(source, source_offset, offset, std::min({length, run.length, kCopyPiece}));
}

uint64_t Image::copy_data(Image& source, uint64_t source_offset, uint64_t offset, uint64_t length) {
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(length));
  const size_t count = source.read({buffer.get(), static_cast<size_t>(length)}, source_offset);
  if (count > 0) write({buffer.get(), count}, offset);
  return count;
}

// False where the host cannot, or if `intact` says that the run may have been punched meanwhile.
bool Image::clone_present(const Run& run, uint64_t offset, const std::function<bool()>& intact) {
  const ChunkSize chunk = context_.chunk;
  const uint64_t length = run.length;
  zero_tail(size());
  const RangeLock::Guard guard =
      chunks_.lock({chunk.chunk_of(offset), chunk.chunk_of(offset + length)});
  check_not_failed();
  for (uint64_t done = 0; done < length;) {
    Run place = layer_->find(offset + done, length - done);
    const bool fresh = place.state != ChunkState::present;
    if (fresh) place = layer_->place(offset + done, place.length);
    bool cloned = false;
    try {
      const SpaceLimit::Claim claim = fresh ? claim_space(place.length) : SpaceLimit::Claim();
      cloned = place.file->clone_range(*run.file, run.file_offset + done, place.file_offset,
                                       place.length) &&
               intact();
      if (cloned && fresh) layer_->set_present(offset + done, place);
    } catch (const std::exception&) {
      if (fresh) give_up(offset + done, place);
      throw;
    }
    if (!cloned) {
      if (fresh) give_up(offset + done, place);
      return false;  // what was cloned so far is right, and is copied again
    }
    if (!fresh) layer_->note_write();
    done += place.length;
  }
  raise_size(offset + length);
  return true;
}

}  // namespace cowfs
