// Copying between images of one store
//
// A range is copied run by run of the source. Whole chunks that go to whole chunks are not read:
//   absent, same place    become absent here: both read the base
//   zero, or behind what the parent shows: become zero here
//   present               the host's reflink, if it has one
// Everything else is read and written. What the target held before is taken away as by a trim.
//
// A target may show less of the base than the source does (it is born empty, or was shrunk). To
// share a chunk its parent limit is raised, and what would come to light between the old limit and
// the range is hidden first: see share_with_base.

#include <algorithm>
#include <cerrno>

#include "store/image.h"

namespace cowfs {
namespace {

constexpr uint64_t kMostAtOnce = uint64_t{1} << 30;
constexpr uint64_t kPiece = 1 << 20;

}  // namespace

uint64_t Image::copy_from(Image& source, uint64_t source_offset, uint64_t offset, uint64_t length) {
  check_not_failed();
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
    const uint64_t piece = matches && to_border > 0 ? to_border : kPiece;
    return copy_data(source, source_offset, offset, std::min(length, piece));
  }

  const uint64_t reclaims = source.reclaims_.load();
  const Run run = source.layer_->find(source_offset, length);
  const bool to_the_end =
      source_offset + run.length == source.size() && offset + run.length >= size();
  const uint64_t whole = chunk.down(run.length);
  const uint64_t limit = source.layer_->parent_limit();
  const bool hole =
      run.state == ChunkState::zero || (run.state == ChunkState::absent && source_offset >= limit);

  if (run.state == ChunkState::absent && !hole && source_offset == offset) {
    const uint64_t shared = to_the_end ? run.length : whole;
    if (shared > 0 && share_with_base(source, offset, shared)) return shared;
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
  return copy_data(source, source_offset, offset, std::min({length, run.length, kPiece}));
}

uint64_t Image::copy_data(Image& source, uint64_t source_offset, uint64_t offset, uint64_t length) {
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(length));
  const size_t count = source.read({buffer.get(), static_cast<size_t>(length)}, source_offset);
  if (count > 0) write({buffer.get(), count}, offset);
  return count;
}

// Makes [offset, offset + length) absent so that it reads as the source's absent chunks do. Its end
// is on a chunk border, or the end of both images. False, and nothing done, if that cannot be.
bool Image::share_with_base(const Image& source, uint64_t offset, uint64_t length) {
  const ChunkSize chunk = context_.chunk;
  const uint64_t end = offset + length;
  const uint64_t source_limit = source.layer_->parent_limit();
  const uint64_t old_limit = layer_->parent_limit();

  // This image shows no more than the source does within the range.
  if (old_limit > source_limit && end > source_limit) return false;

  zero_tail(size());
  const uint64_t first = std::min(chunk.down(old_limit), offset);
  const RangeLock::Guard guard =
      chunks_.lock({chunk.chunk_of(first), chunk.chunk_of(chunk.up(end))});
  if (layer_->parent_limit() != old_limit) return false;
  if (!chunk.aligned(end)) {
    // The rest of the last chunk is not ours: somebody may be writing there, in place if it is
    // present, and wait for us if it is not.
    if (size() > end || layer_->find(chunk.down(end), 1).state == ChunkState::present) return false;
  }
  const uint64_t new_limit = std::max(old_limit, std::min(source_limit, end));

  if (new_limit > old_limit && old_limit < offset) {
    // A chunk that is half shown would be shown whole: it gets its bytes for its own.
    if (!chunk.aligned(old_limit)) {
      const uint64_t start = chunk.down(old_limit);
      const Run run = layer_->find(start, chunk.bytes());
      if (run.state == ChunkState::absent) {
        std::vector<std::byte> bytes(static_cast<size_t>(chunk.bytes()));
        read_parent(bytes, start);
        write_new(bytes, start);
      }
    }
  }
  // A commit has all of this or nothing: one half would be zeros, or base content, that nobody
  // wrote (I4). For readers what is to stay hidden is hidden before the limit rises, and what is
  // to be shared has the limit above it before it becomes absent.
  const std::lock_guard shape_lock(shape_mutex_);
  if (new_limit > old_limit) {
    for (uint64_t at = chunk.up(old_limit); at < offset;) {
      const Run run = layer_->find(at, offset - at);
      if (run.state == ChunkState::absent) layer_->take_away(at, run.length, ChunkState::zero);
      at += run.length;
    }
  }
  raise_size(end);
  layer_->set_parent_limit(new_limit);
  layer_->take_away(offset, chunk.up(end) - offset, ChunkState::absent);
  return true;
}

// False where the host cannot, or if `intact` says that the run may have been punched meanwhile.
bool Image::clone_present(const Run& run, uint64_t offset, const std::function<bool()>& intact) {
  const ChunkSize chunk = context_.chunk;
  const uint64_t length = run.length;
  zero_tail(size());
  const RangeLock::Guard guard =
      chunks_.lock({chunk.chunk_of(offset), chunk.chunk_of(offset + length)});
  for (uint64_t done = 0; done < length;) {
    Run place = layer_->find(offset + done, length - done);
    const bool fresh = place.state != ChunkState::present;
    if (fresh) place = layer_->place(offset + done, place.length);
    if (!place.file->clone_range(*run.file, run.file_offset + done, place.file_offset,
                                 place.length) ||
        !intact()) {
      return false;  // what was cloned so far is right, and is copied again
    }
    if (fresh) {
      layer_->set_present(offset + done, place);
    } else {
      layer_->note_write();
    }
    done += place.length;
  }
  raise_size(offset + length);
  return true;
}

}  // namespace cowfs
