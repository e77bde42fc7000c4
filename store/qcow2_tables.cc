// The L1 and L2 tables of a qcow2 file that is a layer
//
// They are the layer's committed map. In what order they are made durable: qcow2_file.cc.

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>

#include "store/error.h"
#include "store/qcow2_file.h"

namespace cowfs {
namespace {

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
