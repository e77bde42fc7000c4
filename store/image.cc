// The writable view of an image
//
// Reading asks the layer for runs: a present run is read from the CoW file, a zero run is zeros, an
// absent run is the base's up to the layer's parent limit and zeros beyond.
//
// Writing into present chunks goes straight to their place. It takes no lock. A chunk that is not
// present is written whole: the data, and around it what the chunk read as before (copy-up), in one
// write; only then does it become present (I4). Since a chunk is always written whole, no stale
// byte of the CoW file shows up (I12), and a write of whole chunks copies nothing. Who changes a
// chunk's state holds the chunk, so only requests for that chunk wait.
//
// A write in place may overtake a trim of the same chunk; both are unanswered then, and either
// order is right. Stale bytes that it leaves below a zero chunk mean nothing (I12). The place
// itself may become another chunk's, even another image's, so it is given back only when nobody
// writes to it any more (Grace).
//
// Reading takes no lock either. A reader that has found a chunk present may come to read it when it
// was made absent and punched meanwhile, and would see zeros that nobody wrote: it reads again if
// space was given back since it looked.
//
// The part of the last chunk behind the image's size is zero: whole writes make it so, a shrink
// does, and the first growth after the image was opened makes sure, for the case that a crash came
// between a shrink and its zeroing.

#include "store/image.h"

#include <spdlog/logger.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "store/descriptor.h"
#include "store/error.h"
#include "store/stop_point.h"

namespace cowfs {

std::string image_title(uint64_t id, const std::optional<std::string>& name) {
  return "image " + name.value_or(std::to_string(id));
}

Image::Image(const Context& context, const ImageRow& row, std::unique_ptr<Layer> layer,
             const std::optional<std::string>& failure)
    : context_(context),
      id_(row.id),
      layer_id_(row.layer),
      live_(live_record(*context.live, row, layer->parent_limit())),
      layer_(std::move(layer)),
      failed_(failure.has_value() || live_.failed.load() != 0),
      failure_(failure),
      space_limit_(row.space_limit),
      committed_size_(row.size),
      committed_limit_(layer_->parent_limit()) {
  layer_->keep_parent_limit_in(live_.parent_limit);
  if (failed_) live_.failed = 1;
  auto times = times_.lock();
  times->attributes = {.mode = row.mode,
                       .uid = row.uid,
                       .gid = row.gid,
                       .atime_ns = live_.atime_ns,
                       .mtime_ns = live_.mtime_ns,
                       .ctime_ns = live_.ctime_ns,
                       .btime_ns = row.btime_ns};
  times->dirty = live_.atime_ns != row.atime_ns || live_.mtime_ns != row.mtime_ns ||
                 live_.ctime_ns != row.ctime_ns;
}

Image::~Image() { context_.live->release(live_); }

Image::Use Image::use() {
  acquire();
  return Use(shared_from_this());
}

void Image::acquire() {
  with_descriptors([this] { activate_and_count(); }, context_.close_idle);
}

void Image::activate(Usage& usage) {
  try {
    layer_->activate();
  } catch (const Error& error) {
    note_refusal(error.what());
    throw;
  }
  refusal_.lock()->reset();
  const std::optional<std::string> damage = layer_->damage();
  damaged_ = damage.has_value();
  if (damage) {
    context_.log.error(
        "{}: damaged: {}: the image takes no writes, and what is missing cannot be read; "
        "`cowfs check` tells more",
        title(), *damage);
  }
  usage.active = true;
  tail_is_zero_ = false;
}

void Image::activate_and_count() {
  if (context_.base == nullptr) throw Error(ENOENT, "base of " + title());
  auto usage = usage_.lock();
  if (usage->unlinked && usage->count == 0) throw Error(ENOENT, title());
  if (!usage->active) activate(*usage);
  ++usage->count;
}

void Image::release() {
  bool free_it = false;
  {
    auto usage = usage_.lock();
    --usage->count;
    free_it = usage->count == 0 && usage->unlinked;
  }
  if (free_it) context_.free_unlinked(*this);
}

bool Image::unlink() {
  auto usage = usage_.lock();
  usage->unlinked = true;
  return usage->count == 0;
}

void Image::cancel_unlink() { usage_.lock()->unlinked = false; }

bool Image::retire_if_idle() {
  if (try_retire()) return true;
  {
    auto usage = usage_.lock();
    if (usage->count > 0 || !usage->active || failed() || usage->unlinked) return false;
    ++usage->count;
  }
  // Writes in place and growth leave the map as it is: nothing else would see to them once the
  // image is closed.
  try {
    flush();
  } catch (const Error&) {
    // Logged; the image stays open, as failed.
  }
  release();
  return try_retire();
}

bool Image::try_retire() {
  auto usage = usage_.lock();
  if (usage->count > 0 || !usage->active || failed()) return false;
  if (layer_->dirty() || layer_->unsynced() || reshaped()) return false;
  layer_->deactivate();
  usage->active = false;
  return true;
}

void Image::remember_times(const Attributes& attributes) {
  live_.atime_ns = attributes.atime_ns;
  live_.mtime_ns = attributes.mtime_ns;
  live_.ctime_ns = attributes.ctime_ns;
}

Attributes Image::attributes() { return times_.lock()->attributes; }

void Image::check_not_failed() const {
  if (failed()) {
    throw Error::with_message(
        EIO, title() +
                 ": an earlier sync of it failed; look at the disk, then end this with cowfs check "
                 "--clear, or with cowfs umount --force and a new mount");
  }
}

void Image::check_writable() const {
  check_not_failed();
  // A write could make the file as long as it has to be, and zeros of what is missing.
  if (damaged_) {
    throw Error::with_message(EIO, title() + ": damaged, see the log");
  }
}

// ---- reading ------------------------------------------------------------------------------------

size_t Image::read(std::span<std::byte> buffer, uint64_t offset) {
  if (unreadable_.load()) {
    discard_uncommitted();  // what was in its way may be gone
    if (unreadable_.load()) throw Error(EIO, title());
  }
  const uint64_t size = this->size();
  if (offset >= size) return 0;
  buffer = buffer.first(static_cast<size_t>(std::min<uint64_t>(buffer.size(), size - offset)));
  // At most once more for each commit that gives space back.
  uint64_t before = 0;
  do {
    before = reclaims_.load();
    read_below_size(buffer, offset);
  } while (reclaims_.load() != before);
  return buffer.size();
}

void Image::read_below_size(std::span<std::byte> buffer, uint64_t offset) {
  const size_t whole = buffer.size();
  unsigned runs = 0;
  while (!buffer.empty()) {
    const Run run = layer_->find(offset, buffer.size());
    const auto length = static_cast<size_t>(run.length);
    // Many short runs one by one would cost a system call each.
    if (++runs > 4 && length < buffer.size() && whole / runs < (64U << 10)) {
      read_interleaved(buffer, offset);
      return;
    }
    read_run(run, buffer.first(length), offset);
    buffer = buffer.subspan(length);
    offset += run.length;
  }
}

void Image::read_run(const Run& run, std::span<std::byte> buffer, uint64_t offset) const {
  if (run.state == ChunkState::present) {
    run.file->read_exactly(buffer, run.file_offset);
  } else {
    read_old(run.state, buffer, offset);
  }
}

void Image::read_old(ChunkState state, std::span<std::byte> buffer, uint64_t offset) const {
  if (state == ChunkState::zero) {
    std::memset(buffer.data(), 0, buffer.size());
  } else {
    read_parent(buffer, offset);
  }
}

void Image::read_parent(std::span<std::byte> buffer, uint64_t offset) const {
  const uint64_t limit = std::min(layer_->parent_limit(), context_.base->size());
  const auto below =
      static_cast<size_t>(offset < limit ? std::min<uint64_t>(buffer.size(), limit - offset) : 0);
  if (below > 0) context_.base->read(buffer.first(below), offset);
  if (below < buffer.size()) std::memset(buffer.data() + below, 0, buffer.size() - below);
}

// Reads the parent under everything in one call, then lays present runs over it with one call for
// those that follow each other in one file; the gaps between go to a scratch buffer.
void Image::read_interleaved(std::span<std::byte> buffer, uint64_t offset) {
  constexpr size_t kScratch = 64 << 10;
  thread_local const auto scratch = std::make_unique_for_overwrite<std::byte[]>(kScratch);

  // The runs are found before the parent is read: a chunk that becomes present meanwhile had been
  // read as absent, which is a value of the time of the request.
  struct Part {
    Run run;
    size_t at;
  };
  std::vector<Part> parts;
  for (size_t at = 0; at < buffer.size();) {
    const Run run = layer_->find(offset + at, buffer.size() - at);
    parts.push_back({run, at});
    at += static_cast<size_t>(run.length);
  }
  if (std::any_of(parts.begin(), parts.end(),
                  [](const Part& part) { return part.run.state == ChunkState::absent; })) {
    read_parent(buffer, offset);
  }

  std::vector<iovec> vector;
  const File* file = nullptr;
  uint64_t start = 0;
  uint64_t end = 0;
  const auto submit = [&] {
    if (file != nullptr && !vector.empty()) file->read_vector(vector, start);
    vector.clear();
  };
  for (const Part& part : parts) {
    const auto length = static_cast<size_t>(part.run.length);
    std::byte* target = buffer.data() + part.at;
    if (part.run.state == ChunkState::zero) std::memset(target, 0, length);
    if (part.run.state != ChunkState::present) continue;
    if (!vector.empty()) {
      const bool forward = part.run.file == file && part.run.file_offset >= end;
      const uint64_t gap = forward ? part.run.file_offset - end : kScratch + 1;
      if (gap > kScratch) {
        submit();
      } else if (gap > 0) {
        vector.push_back({scratch.get(), static_cast<size_t>(gap)});
      }
    }
    if (vector.empty()) {
      file = part.run.file;
      start = part.run.file_offset;
    }
    vector.push_back({target, length});
    end = part.run.file_offset + length;
  }
  submit();
}

// ---- writing ------------------------------------------------------------------------------------

void Image::write(std::span<const std::byte> buffer, uint64_t offset) {
  while (const std::optional<Blocked> blocked = try_write(buffer, offset)) {
    buffer = buffer.subspan(blocked->written);
    offset += blocked->written;
    // Waits by taking and leaving it; the write then finds out anew how things are.
    static_cast<void>(chunks_.lock(blocked->range));
  }
}

std::optional<Image::Blocked> Image::try_write(std::span<const std::byte> buffer, uint64_t offset) {
  check_writable();
  if (buffer.empty()) return std::nullopt;
  // What lies beyond the largest size is refused when the rest is written: one request of the
  // kernel's writeback holds the bytes of many writes.
  const uint64_t end = std::min(offset + buffer.size(), std::max(largest_size(), offset));
  if (end > size()) zero_tail(size());
  uint64_t at = offset;
  // What was written shows, also if the rest fails: behind the size it would lie in wait for a
  // growth.
  struct Raise {
    Image& image;
    const uint64_t start;
    const uint64_t& written;
    ~Raise() {
      if (written > start) image.raise_size(written);
    }
  };
  const Raise raise{*this, offset, at};
  const auto blocked = [&](ChunkRange range) {
    return Blocked{range, static_cast<size_t>(at - offset)};
  };
  while (at < end) {
    const std::span rest = buffer.subspan(static_cast<size_t>(at - offset));
    if (const uint64_t length = write_in_place(rest.first(static_cast<size_t>(end - at)), at)) {
      at += length;
      continue;
    }
    // The limit first: a sharing hides what lies below before it raises the limit over it.
    const uint64_t limit = layer_->parent_limit();
    const Run run = layer_->find(at, end - at);
    if (run.state == ChunkState::present) continue;  // by now
    const std::span data = rest.first(static_cast<size_t>(run.length));
    const Shared shared = share_written(run, limit, data, at);
    if (shared.busy) return blocked(*shared.busy);
    if (shared.done) {
      at += shared.length;
      continue;
    }
    const ChunkRange range{context_.chunk.chunk_of(at),
                           context_.chunk.chunk_of(at + shared.length - 1) + 1};
    const RangeLock::Guard guard = chunks_.try_lock(range);
    if (!guard) return blocked(range);
    check_not_failed();  // it may have while this waited; see discard_uncommitted
    // What was not present may be by now.
    const Run now = layer_->find(at, shared.length);
    if (now.state == ChunkState::present) continue;
    write_new(data.first(static_cast<size_t>(now.length)), at);
    at += now.length;
  }
  if (end < offset + buffer.size()) throw Error(EFBIG, title());
  return std::nullopt;
}

// Bytes at the front of `buffer` that lie in present chunks, and are written now.
uint64_t Image::write_in_place(std::span<const std::byte> buffer, uint64_t offset) {
  // The place may become another chunk's if this one is trimmed, but not while it is held.
  const Grace::Hold hold(in_place_);
  const Run run = layer_->find(offset, buffer.size());
  if (run.state != ChunkState::present) return 0;
  run.file->write(buffer.first(static_cast<size_t>(run.length)), run.file_offset);
  layer_->note_write();
  return run.length;
}

SpaceLimit::Claim Image::claim_space(uint64_t bytes) {
  if (bytes > 0 && !context_.reserve.spares_images()) {
    throw Error::with_message(ENOSPC,
                              title() + ": what is left of the disk is kept for the catalog");
  }
  return space_limit_.claim(bytes, [this] { return own_bytes(); });
}

void Image::set_space_limit(std::optional<uint64_t> bytes) {
  context_.catalog.change([&](Catalog::Change& change) { change.set_space_limit(id_, bytes); });
  space_limit_.set(bytes);
}

void Image::write_new(std::span<const std::byte> buffer, uint64_t offset) {
  const ChunkSize chunk = context_.chunk;
  const uint64_t end = offset + buffer.size();
  const ChunkState state = layer_->find(offset, 1).state;
  uint64_t start = chunk.down(offset);
  const uint64_t stop = chunk.up(end);

  // Head and tail: what the first and the last chunk hold besides the data.
  const auto head = static_cast<size_t>(offset - start);
  const auto tail = static_cast<size_t>(stop - end);
  const auto fill = std::make_unique_for_overwrite<std::byte[]>(head + tail);
  if (head > 0) read_old(state, {fill.get(), head}, start);
  if (tail > 0) read_old(state, {fill.get() + head, tail}, end);

  std::array<iovec, 3> pieces{iovec{fill.get(), head},
                              iovec{const_cast<std::byte*>(buffer.data()), buffer.size()},
                              iovec{fill.get() + head, tail}};
  const SpaceLimit::Claim claim = claim_space(stop - start);
  std::span<iovec> rest(pieces);
  while (start < stop) {
    const Run place = layer_->place(start, stop - start);
    try {
      std::vector<iovec> now;
      for (uint64_t want = place.length; want > 0;) {
        iovec& front = rest.front();
        const auto step = static_cast<size_t>(std::min<uint64_t>(want, front.iov_len));
        now.push_back({front.iov_base, step});
        front.iov_base = static_cast<std::byte*>(front.iov_base) + step;
        front.iov_len -= step;
        want -= step;
        if (front.iov_len == 0) rest = rest.subspan(1);
      }
      place.file->write_vector(now, place.file_offset);
      stop_point(StopPoint::data_written);
      // I4: only what has been written becomes present.
      layer_->set_present(start, place);
      stop_point(StopPoint::bit_set);
    } catch (const std::exception&) {
      give_up(start, place);
      throw;
    }
    start += place.length;
  }
}

void Image::give_up(uint64_t offset, const Run& place) {
  try {
    layer_->give_up(offset, place);
  } catch (const Error& error) {
    context_.log.debug("{}: space not given back: {}", title(), error.what());
  }
}

void Image::raise_size(uint64_t size) {
  uint64_t old = this->size();
  while (old < size && !live_.size.compare_exchange_weak(old, size, std::memory_order_acq_rel)) {
  }
}

void Image::extend(uint64_t size) {
  if (size > largest_size()) throw Error(EFBIG, title());
  check_writable();
  if (size <= this->size()) return;
  zero_tail(this->size());
  raise_size(size);
}

bool Image::tail_shows_parent(ChunkState state, uint64_t size) const {
  return layer_->shows_whole_chunks() && state == ChunkState::absent &&
         size < context_.base->size();
}

void Image::zero_tail(uint64_t size) {
  if (tail_is_zero_.load()) return;
  if (!context_.chunk.aligned(size)) {
    const uint64_t end = context_.chunk.up(size);
    const uint64_t chunk = context_.chunk.chunk_of(size);
    const RangeLock::Guard guard = chunks_.lock({chunk, chunk + 1});
    const Run run = layer_->find(size, end - size);
    const std::vector<std::byte> zeros(static_cast<size_t>(run.length));
    // Unless another write has grown the image into this part meanwhile.
    if (this->size() == size && !tail_is_zero_.load()) {
      if (run.state == ChunkState::present) {
        run.file->write(zeros, run.file_offset);
        layer_->note_write();
      } else if (tail_shows_parent(run.state, size)) {
        write_new(zeros, size);
      }
    }
  }
  tail_is_zero_ = true;
}

// ---- zeroing ------------------------------------------------------------------------------------

void Image::make_zero(uint64_t offset, uint64_t length) {
  check_writable();
  if (offset >= largest_size()) return;
  length = std::min(length, largest_size() - offset);
  uint64_t end = offset + length;
  // Behind the image's end all is zero already: its last chunk goes as a whole.
  if (end >= size()) end = context_.chunk.up(end);
  const uint64_t first = context_.chunk.up(offset);
  const uint64_t last = context_.chunk.down(end);
  if (first >= last) {
    // Within one chunk, or over the border of two.
    const uint64_t border = std::min(first, end);
    zero_part(offset, border - offset);
    zero_part(border, end - border);
    return;
  }
  zero_part(offset, first - offset);
  zero_chunks(first, last - first);
  zero_part(last, end - last);
}

void Image::zero_part(uint64_t offset, uint64_t length) {
  const uint64_t size = this->size();
  if (length == 0 || offset >= size) return;
  length = std::min(length, size - offset);
  const ChunkState state = layer_->find(offset, length).state;
  if (state == ChunkState::zero) return;
  if (state == ChunkState::absent && offset >= layer_->parent_limit()) return;
  const std::vector<std::byte> zeros(static_cast<size_t>(length));
  write(zeros, offset);
}

void Image::zero_chunks(uint64_t offset, uint64_t length) {
  const ChunkSize chunk = context_.chunk;
  const uint64_t end = offset + length;
  const RangeLock::Guard guard = chunks_.lock({chunk.chunk_of(offset), chunk.chunk_of(end)});
  check_not_failed();
  const uint64_t limit = chunk.up(layer_->parent_limit());
  while (offset < end) {
    // Behind the limit an absent chunk reads as zeros as it is, and costs no map.
    const bool hides = offset < limit;
    const Run run = layer_->find(offset, hides ? std::min(end, limit) - offset : end - offset);
    const ChunkState wanted = hides ? ChunkState::zero : ChunkState::absent;
    layer_->take_away(offset, run.length, wanted);
    offset += run.length;
  }
}

void Image::reserve(uint64_t offset, uint64_t length) {
  check_writable();
  if (offset + length > kMaxImageSize) throw Error(EFBIG, title());
  const ChunkSize chunk = context_.chunk;
  const uint64_t start = chunk.down(offset);
  const uint64_t end = chunk.up(offset + length);
  try {
    layer_->reserve(start, end - start);
    const SpaceLimit::Claim nothing_more = claim_space(0);
  } catch (const Error&) {
    // The host keeps what it had allocated when it ran out of space.
    const RangeLock::Guard guard = chunks_.lock({chunk.chunk_of(start), chunk.chunk_of(end)});
    layer_->reclaim(start, end - start);
    throw;
  }
}

// ---- holes --------------------------------------------------------------------------------------

std::optional<uint64_t> Image::next_data(uint64_t offset) {
  const uint64_t size = this->size();
  while (offset < size) {
    const Run run = layer_->find(offset, size - offset);
    if (run.state == ChunkState::present) return offset;
    const uint64_t end = offset + run.length;
    if (run.state == ChunkState::absent) {
      const uint64_t limit = std::min({end, layer_->parent_limit(), context_.base->size()});
      if (offset < limit) {
        const std::optional<uint64_t> data = context_.base->next_data(offset, limit);
        if (data) return data;
      }
    }
    offset = end;
  }
  return std::nullopt;
}

std::optional<uint64_t> Image::next_hole(uint64_t offset) {
  const uint64_t size = this->size();
  if (offset >= size) return std::nullopt;
  while (offset < size) {
    const Run run = layer_->find(offset, size - offset);
    const uint64_t end = offset + run.length;
    if (run.state == ChunkState::zero) return offset;
    if (run.state == ChunkState::absent) {
      const uint64_t limit = std::min({end, layer_->parent_limit(), context_.base->size()});
      if (offset >= limit) return offset;
      const uint64_t hole = context_.base->next_hole(offset, limit);
      if (hole < limit) return hole;
      if (limit < end) return limit;
    }
    offset = end;
  }
  return size;
}

}  // namespace cowfs
