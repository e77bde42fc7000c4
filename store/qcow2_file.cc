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
// Refcounts: qcow2_refcounts.cc.
//
// The backing file's name lies outside the header's sector. A new one is written elsewhere in the
// first cluster before the header names it.

#include "store/qcow2_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <set>

#include "store/error.h"
#include "store/image_lock.h"
#include "store/names.h"
#include "store/sabotage.h"

namespace cowfs {
namespace {

constexpr uint64_t kMostL1Bytes = 32U << 20U;  // QEMU's own limit
constexpr uint64_t kGrowSlots = 64;

uint64_t encode(uint32_t entry, ChunkSize chunk) {
  switch (SlotMap::state_of(entry)) {
    case ChunkState::absent:
      return 0;
    case ChunkState::zero:
      return qcow2::kZeroFlag;
    case ChunkState::present:
      break;
  }
  return chunk.offset_of(SlotMap::slot_of_entry(entry)) | qcow2::kCopiedFlag;
}

/// "0x8000000000050000".
std::string entry_text(uint64_t entry) {
  std::array<char, 16> digits{};
  const auto end = std::to_chars(digits.begin(), digits.end(), entry, 16).ptr;
  return "0x" + std::string(digits.begin(), end);
}

bool says_nothing(const MapBits& bits) {
  return std::all_of(bits.begin(), bits.end(), [](uint64_t word) { return word == 0; });
}

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

void Qcow2File::read_l1() {
  std::vector<Entry> table(static_cast<size_t>(header_.l1.entries));
  const uint64_t bytes = table.size() * sizeof(Entry);
  const uint64_t file_size = file_->size();
  if (!table.empty()) {
    if (!chunk_.aligned(header_.l1.offset) || header_.l1.offset == 0 || bytes > file_size ||
        header_.l1.offset > file_size - bytes) {
      throw damaged("its L1 table lies outside the file");
    }
    file_->read_exactly(std::as_writable_bytes(std::span(table)), header_.l1.offset);
  }
  const std::lock_guard lock(mutex_);
  l1_.clear();
  for (const uint64_t entry : table) {
    const uint64_t offset = entry & qcow2::kOffsetMask;
    if (!chunk_.aligned(offset) || offset + chunk_.bytes() > chunk_.up(file_size)) {
      throw damaged("an L2 table is said to lie at byte " + std::to_string(offset));
    }
    // What it had would show as the base, and what it held be given away as leaked.
    if ((entry & ~(qcow2::kOffsetMask | qcow2::kCopiedFlag)) != 0 || (offset == 0 && entry != 0)) {
      throw damaged("entry " + std::to_string(l1_.size()) + " of its L1 table is " +
                    entry_text(entry) + ", which leads nowhere; put the file back from a copy");
    }
    l1_.push_back(offset);
  }
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

// ---- tables -------------------------------------------------------------------------------------

void Qcow2File::require_valid(uint64_t entry, uint64_t chunk) const {
  if ((entry & qcow2::kCompressedFlag) != 0) {
    throw Error::with_message(
        EOPNOTSUPP,
        "layer " + identity_.path + ": has compressed clusters, chunk " + std::to_string(chunk) +
            " say, over which cowfs cannot write; keep what `qemu-img convert` makes of "
            "the disk elsewhere, and write it to a new image");
  }
  constexpr uint64_t kKnown = qcow2::kOffsetMask | qcow2::kCopiedFlag | qcow2::kZeroFlag;
  if ((entry & ~kKnown) != 0 || entry == qcow2::kCopiedFlag) {
    throw damaged("chunk " + std::to_string(chunk) + " has the entry " + entry_text(entry) +
                  ", which means nothing; `qemu-img check` says more");
  }
}

void Qcow2File::load_pages(uint64_t first, uint64_t count,
                           const std::function<bool(const MapBits&)>& valid,
                           const MapTree::Receive& receive) {
  const uint64_t pages_per_table = entries_per_table() / SlotMap::kChunksInPage;
  constexpr uint64_t kPageBytes = SlotMap::kChunksInPage * sizeof(Entry);
  std::vector<Entry> entries;
  for (uint64_t page = first; page < first + count;) {
    const uint64_t index = page / pages_per_table;
    const uint64_t in_table = page % pages_per_table;
    const uint64_t pages = std::min(pages_per_table - in_table, first + count - page);
    uint64_t table = 0;
    {
      const std::lock_guard lock(mutex_);
      if (index >= l1_.size()) return;
      table = l1_[static_cast<size_t>(index)];
    }
    if (table == 0) {
      page += pages;
      continue;
    }
    entries.resize(static_cast<size_t>(pages * SlotMap::kChunksInPage));
    file_->read_exactly(std::as_writable_bytes(std::span(entries)), table + in_table * kPageBytes);
    for (uint64_t i = 0; i < pages; ++i, ++page) {
      MapBits bits{};
      for (uint64_t j = 0; j < SlotMap::kChunksInPage; ++j) {
        const uint64_t entry = entries[static_cast<size_t>(i * SlotMap::kChunksInPage + j)];
        if (entry == 0) continue;
        const uint64_t chunk = page * SlotMap::kChunksInPage + j;
        require_valid(entry, chunk);
        const uint64_t offset = entry & qcow2::kOffsetMask;
        if ((entry & qcow2::kZeroFlag) != 0) {
          SlotMap::put(bits, j, SlotMap::kZeroEntry);
          // Prepared by QEMU: it is let go of with the entry.
          if (offset != 0) counts_anew_ = true;
          continue;
        }
        const uint64_t slot = chunk_.chunk_of(offset);
        if (std::binary_search(metadata_.begin(), metadata_.end(), slot)) {
          throw damaged("chunk " + std::to_string(chunk) + " is said to lie at byte " +
                        std::to_string(offset) +
                        ", where the file's own tables lie; `qemu-img check` says more");
        }
        if (!chunk_.aligned(offset) || !slots_->is_taken(slot)) {
          throw damaged("chunk " + std::to_string(chunk) + " is said to lie at byte " +
                        std::to_string(offset) +
                        ", which is outside the file or counts as free; `qemu-img check` says "
                        "more");
        }
        SlotMap::put(bits, j, SlotMap::entry_of_slot(slot));
      }
      if (says_nothing(bits)) continue;
      if (!valid(bits)) throw damaged("page " + std::to_string(page) + " of its map");
      receive(page, bits);
    }
  }
}

std::optional<uint64_t> Qcow2File::last_page() const {
  for (size_t i = l1_.size(); i-- > 0;) {
    if (l1_[i] != 0) return (i + 1) * entries_per_table() / SlotMap::kChunksInPage - 1;
  }
  return std::nullopt;
}

void Qcow2File::make_l1(uint64_t entries) {
  const uint64_t bytes = chunk_.up(entries * sizeof(Entry));
  // Room for what comes next, in what the clusters hold anyway.
  entries = bytes / sizeof(Entry);
  const SlotRun run{allocate_neighbours(chunk_.chunk_of(bytes)), chunk_.chunk_of(bytes)};
  const SlotRun old{chunk_.chunk_of(header_.l1.offset),
                    clusters_for(header_.l1.entries * sizeof(Entry))};
  try {
    std::vector<Entry> table(static_cast<size_t>(entries));
    for (size_t i = 0; i < l1_.size(); ++i) {
      const bool is_new = std::find(new_tables_.begin(), new_tables_.end(), i) != new_tables_.end();
      if (l1_[i] != 0 && !is_new) table[i] = l1_[i] | qcow2::kCopiedFlag;
    }
    file_->write(std::as_bytes(std::span(table)), chunk_.offset_of(run.first));
  } catch (...) {
    slots_->release({&run, 1});
    throw;
  }
  file_->sync_data();
  header_.l1 = {chunk_.offset_of(run.first), entries};
  write_header();
  file_->sync_data();
  if (old.count > 0) slots_->release({&old, 1});
  const std::lock_guard lock(mutex_);
  l1_.resize(static_cast<size_t>(entries));
}

void Qcow2File::make_tables(std::span<const PageCopy> pages, uint64_t size) {
  const uint64_t pages_per_table = entries_per_table() / SlotMap::kChunksInPage;
  uint64_t entries = l1_entries_for(size);
  for (const PageCopy& page : pages) {
    if (!says_nothing(page.bits)) entries = std::max(entries, page.page / pages_per_table + 1);
  }
  if (entries > header_.l1.entries || !pages.empty()) mark_dirty();
  if (entries > header_.l1.entries) make_l1(entries);
  for (const PageCopy& page : pages) {
    const auto index = static_cast<size_t>(page.page / pages_per_table);
    if (says_nothing(page.bits) || l1_[index] != 0) continue;
    const uint64_t cluster = allocate_cluster();
    try {
      // All of it, so that it finds its space when it is changed.
      const std::vector<std::byte> zeros(static_cast<size_t>(chunk_.bytes()));
      file_->write(zeros, chunk_.offset_of(cluster));
      new_tables_.push_back(index);
    } catch (...) {
      const SlotRun run{cluster, 1};
      slots_->release({&run, 1});
      throw;
    }
    const std::lock_guard lock(mutex_);
    l1_[index] = chunk_.offset_of(cluster);
  }
}

void Qcow2File::write_pages(std::span<const PageCopy> pages) {
  if (pages.empty() && new_tables_.empty()) return;
  const uint64_t pages_per_table = entries_per_table() / SlotMap::kChunksInPage;
  constexpr uint64_t kPageBytes = SlotMap::kChunksInPage * sizeof(Entry);
  std::vector<Entry> entries;
  for (size_t i = 0; i < pages.size();) {
    const uint64_t index = pages[i].page / pages_per_table;
    const uint64_t table = index < l1_.size() ? l1_[static_cast<size_t>(index)] : 0;
    const uint64_t first = pages[i].page;
    entries.clear();
    // As many as lie behind each other.
    do {
      for (uint64_t j = 0; j < SlotMap::kChunksInPage; ++j) {
        entries.emplace_back(encode(SlotMap::entry(pages[i].bits, j), chunk_));
      }
      ++i;
    } while (i < pages.size() && pages[i].page == pages[i - 1].page + 1 &&
             pages[i].page / pages_per_table == index);
    if (table == 0) continue;  // all absent
    file_->write(std::as_bytes(std::span(entries)), table + first % pages_per_table * kPageBytes);
  }
  for (const uint64_t index : new_tables_) {
    const std::array<Entry, 1> entry{l1_[static_cast<size_t>(index)] | qcow2::kCopiedFlag};
    file_->write(std::as_bytes(std::span(entry)), header_.l1.offset + index * sizeof(Entry));
  }
  file_->sync_data();
  new_tables_.clear();
}

bool Qcow2File::has_entries_from(uint64_t chunk) const {
  const uint64_t index = chunk / entries_per_table();
  const uint64_t in_table = chunk % entries_per_table();
  for (uint64_t i = index + (in_table > 0 ? 1 : 0); i < l1_.size(); ++i) {
    if (l1_[static_cast<size_t>(i)] != 0) return true;
  }
  if (in_table == 0 || index >= l1_.size() || l1_[static_cast<size_t>(index)] == 0) return false;
  std::vector<Entry> rest(static_cast<size_t>(entries_per_table() - in_table));
  file_->read_exactly(std::as_writable_bytes(std::span(rest)),
                      l1_[static_cast<size_t>(index)] + in_table * sizeof(Entry));
  return std::any_of(rest.begin(), rest.end(), [](uint64_t entry) { return entry != 0; });
}

void Qcow2File::clear_from(uint64_t chunk) {
  if (!has_entries_from(chunk)) return;
  const uint64_t index = chunk / entries_per_table();
  const uint64_t in_table = chunk % entries_per_table();
  if (in_table > 0 && index < l1_.size() && l1_[static_cast<size_t>(index)] != 0) {
    const std::vector<std::byte> zeros(
        static_cast<size_t>((entries_per_table() - in_table) * sizeof(Entry)));
    file_->write(zeros, l1_[static_cast<size_t>(index)] + in_table * sizeof(Entry));
  }
  const auto first = static_cast<size_t>(index + (in_table > 0 ? 1 : 0));
  std::vector<SlotRun> tables;
  if (first < l1_.size()) {
    const std::vector<std::byte> zeros((l1_.size() - first) * sizeof(Entry));
    file_->write(zeros, header_.l1.offset + first * sizeof(Entry));
    const std::lock_guard lock(mutex_);
    for (size_t i = first; i < l1_.size(); ++i) {
      if (l1_[i] != 0) tables.push_back({chunk_.chunk_of(l1_[i]), 1});
      l1_[i] = 0;
    }
    std::erase_if(new_tables_, [first](uint64_t table) { return table >= first; });
  }
  file_->sync_data();
  give_back(tables);
}

}  // namespace cowfs
