// A qcow2 file as a layer
//
// What is durable when (I3, I4). A power cut may leave any part of what was written after the last
// sync, in pieces of a sector, and the tables must make sense all the same:
//   1. data, and new L2 tables, full of zeros, in clusters that no table names; sync
//   2. entries of L2 tables, in place, and of the L1 table: each is old or new, since none crosses
//   a
//      sector, and what either names is there; sync
//   3. the size, where it changes, in the header's one sector; sync
// A shrink does (3) first, then clears what lies behind, and a crash between the two is made good
// when the file is opened. A larger L1 table is written anew, and named by the header.
//
// Tables: qcow2_tables.cc; refcounts: qcow2_refcounts.cc.
//
// The backing file's name lies outside the header's sector. A new one is written elsewhere in the
// first cluster before the header names it.

#include "store/qcow2_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "store/error.h"
#include "store/image_lock.h"
#include "store/names.h"
#include "store/sabotage.h"

namespace cowfs {
namespace {

constexpr uint64_t kMostL1Bytes = 32U << 20U;  // QEMU's own limit
constexpr uint64_t kGrowSlots = 64;

}  // namespace

Qcow2File::Qcow2File(Identity identity, const FaultHook* hook)
    : identity_(std::move(identity)), chunk_(identity_.chunk), hook_(hook) {}

Qcow2File::~Qcow2File() = default;

uint64_t Qcow2File::largest_size(ChunkSize chunk) {
  const uint64_t chunks = kMostL1Bytes / sizeof(Entry) * (chunk.bytes() / sizeof(Entry));
  return chunks > kMaxImageSize / chunk.bytes() ? kMaxImageSize : chunk.offset_of(chunks);
}

uint64_t Qcow2File::l1_entries_for(uint64_t size) const {
  const uint64_t covers = chunk_.offset_of(entries_per_table());
  return (size + covers - 1) / covers;
}

Error Qcow2File::damaged(const std::string& what) const {
  return Error::with_message(EUCLEAN, "layer " + identity_.path + ": damaged: " + what);
}

uint64_t Qcow2File::own_bytes() const {
  struct stat status {};
  if (::stat(identity_.path.c_str(), &status) != 0) return 0;
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

// ---- opening ------------------------------------------------------------------------------------

File Qcow2File::open_file(int flags) const {
  return {identity_.path, flags | O_NOFOLLOW | O_NONBLOCK, 0600, hook_};
}

void Qcow2File::make(uint64_t size) const {
  const uint64_t l1_entries = std::max<uint64_t>(1, l1_entries_for(size));
  const uint64_t l1_clusters = clusters_for(l1_entries * sizeof(Entry));
  // One cluster of refcounts covers so many; one of the table very many of those.
  const uint64_t counts = chunk_.bytes() / sizeof(uint16_t);
  uint64_t blocks = 1;
  while (2 + blocks + l1_clusters > blocks * counts) ++blocks;
  const uint64_t clusters = 2 + blocks + l1_clusters;

  const qcow2::LayerHeader header{
      .cluster_bits = static_cast<unsigned>(std::countr_zero(chunk_.bytes())),
      .size = size,
      .l1 = {chunk_.offset_of(2 + blocks), l1_entries},
      .refcount_table_offset = chunk_.offset_of(1),
      .refcount_table_clusters = 1,
      .dirty = false,
      .compatible = 0,
      .store = identity_.store,
      .layer = identity_.layer,
      .backing_name = identity_.backing_name,
      .backing_format = identity_.backing_format,
      .backing_name_offset = qcow2::place_for_name({})};
  const File file = open_file(O_RDWR | O_CREAT | O_TRUNC);
  std::vector<Entry> table(blocks);
  for (uint64_t i = 0; i < blocks; ++i) table[i] = chunk_.offset_of(2 + i);
  std::vector<BigEndian<uint16_t>> refcounts(clusters, BigEndian<uint16_t>(1));
  // What is used of the L1 table is to find its space when it is changed.
  const std::vector<std::byte> zeros(static_cast<size_t>(l1_entries * sizeof(Entry)));
  file.write(zeros, header.l1.offset);
  file.truncate(chunk_.offset_of(clusters));
  file.write(std::as_bytes(std::span(refcounts)), chunk_.offset_of(2));
  file.write(std::as_bytes(std::span(table)), header.refcount_table_offset);
  file.write(std::as_bytes(std::span(header.backing_name)), header.backing_name_offset);
  file.write(qcow2::pack(header), 0);
  file.sync();
}

qcow2::LayerFacts Qcow2File::read_header(const File& file) const {
  qcow2::LayerFacts facts = qcow2::read_layer_header(file, file.size(), "layer " + identity_.path);
  require_ours(facts);
  return facts;
}

void Qcow2File::require_ours(const qcow2::LayerFacts& facts) const {
  const qcow2::LayerHeader& header = facts.header;
  if (header.store != identity_.store || header.layer != identity_.layer) {
    throw damaged("it is layer " + std::to_string(header.layer) + " of the store with UUID " +
                  printable(header.store) + "; put back the right file");
  }
  if (uint64_t{1} << header.cluster_bits != chunk_.bytes()) {
    throw damaged("its clusters have 2^" + std::to_string(header.cluster_bits) +
                  " bytes, and the store's chunks " + std::to_string(chunk_.bytes()));
  }
  if (header.size > largest_size(chunk_) || header.l1.entries * sizeof(Entry) > kMostL1Bytes ||
      header.l1.entries < l1_entries_for(header.size)) {
    throw damaged("its L1 table does not go with its size of " + std::to_string(header.size) +
                  " bytes");
  }
  if (header.backing_name == identity_.backing_name || identity_.backing_name.empty()) return;
  if (facts.names_our_backing) return;  // the base has been moved since
  throw Error::with_message(
      EUCLEAN,
      "layer " + identity_.path + ": names " +
          (header.backing_name.empty() ? "no backing file"
                                       : "the backing file " + printable(header.backing_name)) +
          ", and the base is " + printable(identity_.backing_name) +
          "; if it was written over the base, `qemu-img rebase -u -F " +
          std::string(format_name(identity_.backing_format)) + " -b '" +
          printable(identity_.backing_name) + "' '" + identity_.path + "'` names it");
}

uint64_t Qcow2File::peek_size(uint64_t known) const {
  const File file = open_file(O_RDONLY);
  const qcow2::LayerHeader header = read_header(file).header;
  // Of a server that was killed: what the host has in its cache is shown, and has to stay.
  if (header.dirty || header.size != known) file.sync_data();
  return header.size;
}

Qcow2File::State Qcow2File::state_of(const struct stat& status) {
  constexpr int64_t kSecond = 1'000'000'000;
  return {.inode = status.st_ino,
          .mtime_ns = status.st_mtim.tv_sec * kSecond + status.st_mtim.tv_nsec,
          .ctime_ns = status.st_ctim.tv_sec * kSecond + status.st_ctim.tv_nsec};
}

void Qcow2File::note_state() {
  struct stat status {};
  noted_.reset();
  if (::lstat(identity_.path.c_str(), &status) == 0) noted_ = state_of(status);
}

void Qcow2File::abandon() {
  file_.reset();
  note_state();
}

// Before anything is written to it.
void Qcow2File::require_untouched() const {
  const struct stat status = file_->status();
  if (!S_ISREG(status.st_mode)) throw damaged("it is no regular file");
  if (status.st_nlink > 1) {
    throw damaged("it has another name too (a hard link), which would change with it");
  }
  if (!try_image_lock(*file_)) {
    throw Error::with_message(EBUSY, "layer " + identity_.path +
                                         ": is in use by another program, such as QEMU; end that "
                                         "first");
  }
  if (noted_ && *noted_ != state_of(status)) {
    throw Error::with_message(EBUSY, "layer " + identity_.path +
                                         ": another program has changed it while the store was "
                                         "mounted; unmount the store and mount it again");
  }
}

void Qcow2File::open() {
  file_.emplace(open_file(O_RDWR));
  try {
    require_untouched();
  } catch (...) {
    file_.reset();
    throw;
  }
  try {
    qcow2::LayerFacts facts = read_header(*file_);
    header_ = std::move(facts.header);
    is_ours_ = facts.is_ours;
    new_tables_.clear();
    counts_anew_ = false;
    read_l1();
    slots_.emplace(file_clusters(), kRegionSlots);
    if (!header_.dirty) note_metadata();
    // Before anything is written that QEMU's bitmaps miss, or where they or refcounts of another
    // width lie.
    if (!is_ours_) mark_dirty();
    if (header_.backing_name != identity_.backing_name ||
        header_.backing_format != identity_.backing_format) {
      mark_dirty();
      write_backing_name();
    }
    if (const uint64_t end = chunk_.chunk_of(chunk_.up(header_.size)); has_entries_from(end)) {
      mark_dirty();
      file_->sync_data();
      clear_from(end);
    }
    if (header_.dirty) {
      count_clusters();
    } else {
      trust_refcounts();
    }
  } catch (...) {
    abandon();
    throw;
  }
}

bool Qcow2File::is_used_elsewhere() const {
  if (file_) return false;
  bool locked = false;
  attempt([&] { locked = is_image_locked(open_file(O_RDONLY)); });
  return locked;
}

void Qcow2File::close() {
  if (!file_) return;
  try {
    if (header_.dirty) {
      if (counts_anew_) count_clusters();
      write_refcounts();
      file_->sync_data();
      header_.dirty = false;
      write_header();
      file_->sync_data();
    }
  } catch (const Error&) {
    // The header says that they are to be counted anew.
  }
  abandon();
}

uint64_t Qcow2File::file_clusters() const {
  const uint64_t clusters = clusters_for(file_->size());
  // Memory is taken for them.
  if (clusters > most_slots()) throw damaged("it is larger than such a file can be");
  return clusters;
}

void Qcow2File::reload() {
  header_ = read_header(*file_).header;
  read_l1();
  new_tables_.clear();
  counts_anew_ = true;
}

// ---- the header ---------------------------------------------------------------------------------

void Qcow2File::write_header() { file_->write(qcow2::pack(header_), 0); }

void Qcow2File::write_backing_name() {
  const uint64_t place = qcow2::place_for_name(header_);
  file_->write(std::as_bytes(std::span(identity_.backing_name)), place);
  file_->sync_data();
  header_.backing_name = identity_.backing_name;
  header_.backing_format = identity_.backing_format;
  header_.backing_name_offset = place;
  write_header();
  file_->sync_data();
  is_ours_ = true;
}

void Qcow2File::mark_dirty() {
  if (header_.dirty && is_ours_) return;
  header_.dirty = true;
  // QEMU may have put the name into the header's sector.
  if (!is_ours_) {
    write_backing_name();
    return;
  }
  write_header();
}

void Qcow2File::write_size(uint64_t size) {
  mark_dirty();
  header_.size = size;
  write_header();
  file_->sync_data();
}

// ---- clusters -----------------------------------------------------------------------------------

std::optional<SlotRun> Qcow2File::allocate(uint64_t want, std::optional<uint64_t> goal,
                                           SlotStream& stream) {
  while (true) {
    if (const auto run = slots_->allocate(want, goal, stream)) return run;
    const uint64_t slots = slots_->slots();
    const uint64_t more = std::min(slots + std::max(want, kGrowSlots), most_slots());
    if (more <= slots) return std::nullopt;
    slots_->grow(more);
  }
}

uint64_t Qcow2File::allocate_cluster() {
  SlotStream begins_somewhere;
  const std::optional<SlotRun> run = allocate(1, std::nullopt, begins_somewhere);
  if (!run) throw Error(ENOSPC, identity_.path);
  return run->first;
}

uint64_t Qcow2File::allocate_neighbours(uint64_t count) {
  while (true) {
    const uint64_t end = slots_->slots();
    if (end + count > most_slots()) throw Error(ENOSPC, identity_.path);
    slots_->grow(end + count);
    if (slots_->claim({end, count})) return end;
  }
}

void Qcow2File::give_back(std::span<const SlotRun> runs) {
  for (const SlotRun& run : runs) {
    if (!can_punch_.load()) break;
    try {
      file_->punch(chunk_.offset_of(run.first), chunk_.offset_of(run.count));
    } catch (const Error&) {
      // The host keeps the space; the clusters are as good as before.
      can_punch_ = false;
    }
  }
  slots_->release(runs);
}

void Qcow2File::sync() {
  try {
    if (!sabotaged(Sabotage::no_data_sync)) file_->sync_data();
  } catch (const Error&) {
    ++failures_;
    throw;
  }
}

}  // namespace cowfs
