// Refcounts of a qcow2 file that is a layer
//
// They are not kept up while the file is written to: its header says so (the dirty bit), durably
// before the first table changes, and they are written when the file is closed. After a crash they
// are counted anew from the tables, by us or by QEMU, whoever comes first. That no cluster is used
// that a table on disk names is known from memory (slot_layer.cc).

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "store/error.h"
#include "store/image_lock.h"
#include "store/names.h"
#include "store/qcow2_file.h"

namespace cowfs {
namespace {

constexpr uint64_t kMostRefcountTableBytes = 8U << 20U;  // QEMU's own limit

}  // namespace

uint64_t Qcow2File::most_slots() const {
  const uint64_t counted =
      kMostRefcountTableBytes / sizeof(Entry) * (chunk_.bytes() / sizeof(uint16_t));
  return std::min(counted, SlotMap::kMostSlots);
}

uint64_t Qcow2File::most_table_clusters() const {
  return std::max<uint64_t>(1, chunk_.chunk_of(kMostRefcountTableBytes));
}

std::vector<std::string> Qcow2File::check() {
  file_.emplace(open_file(O_RDONLY));
  read_only_ = true;
  std::vector<std::string> findings;
  if (is_image_locked(*file_)) {
    findings.emplace_back(
        "another program, such as QEMU, has it open for writing: it was not looked into; check "
        "again when that has ended");
    return findings;
  }
  const qcow2::LayerFacts facts = read_header(*file_);
  header_ = facts.header;
  if (!identity_.backing_name.empty() && (header_.backing_name != identity_.backing_name ||
                                          facts.backing_format != identity_.backing_format)) {
    findings.push_back(
        "names " + printable(header_.backing_name) + " (" +
        (facts.backing_format ? std::string(format_name(*facts.backing_format)) : "no format") +
        ") as its backing file, which is " + printable(identity_.backing_name) + " (" +
        std::string(format_name(identity_.backing_format)) +
        "): QEMU shows another disk than cowfs, until cowfs writes to the file");
  }
  read_l1();
  if (has_entries_from(chunk_.chunk_of(chunk_.up(header_.size)))) {
    findings.emplace_back("its tables go on behind its end, after a resize that was cut short");
  }
  const Counted in_use = count_clusters();
  if (in_use.shared > 0) {
    findings.push_back(std::to_string(in_use.shared) +
                       " of its clusters are not marked as belonging to it alone; `qemu-img check "
                       "-r all` marks them");
  }
  // What is not kept up cannot be wrong.
  if (header_.dirty) return findings;
  if (!in_use.has_counts) {
    throw damaged(
        "its refcounts lie outside the file, or where something else does; `qemu-img check` says "
        "more");
  }
  uint64_t lost = 0;
  uint64_t leaked = 0;
  std::set<uint64_t> counted;
  for_each_refcount([&](uint64_t cluster, unsigned count) {
    counted.insert(cluster);
    const bool taken = slots_->is_taken(cluster);
    if (count != (taken ? 1U : 0U)) ++(taken ? lost : leaked);
  });
  for (uint64_t i = 0; i < slots_->slots(); ++i) {
    if (slots_->is_taken(i) && !counted.contains(i)) ++lost;
  }
  if (lost > 0) {
    throw damaged(std::to_string(lost) +
                  " of its clusters are in use and do not count as that; `qemu-img check -r all` "
                  "counts them anew");
  }
  if (leaked > 0) {
    findings.push_back(std::to_string(leaked) +
                       " of its clusters count as in use and are not; `qemu-img check -r leaks` "
                       "gives them back");
  }
  return findings;
}

Qcow2File::Counted Qcow2File::count_clusters() {
  slots_.emplace(file_clusters(), kRegionSlots);
  counts_anew_ = false;
  metadata_.clear();  // all that lies over something else is found here
  Counted counted;
  const auto take = [&](uint64_t offset, const char* what) {
    if (chunk_.aligned(offset) && slots_->claim({chunk_.chunk_of(offset), 1})) return;
    throw damaged(std::string(what) + " at byte " + std::to_string(offset) +
                  " lies outside the file, or where something else does; `qemu-img check` says "
                  "more");
  };
  take(0, "the header");
  for (uint64_t i = 0; i < clusters_for(header_.l1.entries * sizeof(Entry)); ++i) {
    take(header_.l1.offset + chunk_.offset_of(i), "the L1 table");
  }
  std::vector<Entry> table(static_cast<size_t>(entries_per_table()));
  for (size_t i = 0; i < l1_.size(); ++i) {
    if (l1_[i] == 0) continue;
    take(l1_[i], "an L2 table");
    file_->read_exactly(std::as_writable_bytes(std::span(table)), l1_[i]);
    for (size_t j = 0; j < table.size(); ++j) {
      const uint64_t entry = table[j];
      if (entry == 0) continue;
      require_valid(entry, i * table.size() + j);
      const uint64_t data = entry & qcow2::kOffsetMask;
      if (data == 0) continue;
      take(data, "a cluster");
      if ((entry & qcow2::kCopiedFlag) == 0) ++counted.shared;
    }
  }
  // The old refcounts keep their place until there are new ones, as far as they make sense.
  const auto try_take = [&](uint64_t offset) {
    return offset != 0 && chunk_.aligned(offset) && slots_->claim({chunk_.chunk_of(offset), 1});
  };
  if (!has_refcount_table() || !slots_->claim({chunk_.chunk_of(header_.refcount_table_offset),
                                               header_.refcount_table_clusters})) {
    header_.refcount_table_clusters = 0;
    counted.has_counts = false;
    return counted;
  }
  std::vector<Entry> blocks = refcount_blocks();
  for (Entry& block : blocks) {
    if (block == 0 || try_take(block)) continue;
    block = 0;
    counted.has_counts = false;
  }
  if (!counted.has_counts && !read_only_) {
    file_->write(std::as_bytes(std::span(blocks)), header_.refcount_table_offset);
  }
  return counted;
}

bool Qcow2File::has_refcount_table() const {
  const uint64_t clusters = header_.refcount_table_clusters;
  const uint64_t file_clusters = this->file_clusters();
  return clusters > 0 && clusters <= most_table_clusters() &&
         chunk_.aligned(header_.refcount_table_offset) && clusters <= file_clusters &&
         chunk_.chunk_of(header_.refcount_table_offset) <= file_clusters - clusters;
}

std::vector<Qcow2File::Entry> Qcow2File::refcount_blocks() const {
  std::vector<Entry> blocks(
      static_cast<size_t>(header_.refcount_table_clusters * entries_per_table()));
  file_->read_exactly(std::as_writable_bytes(std::span(blocks)), header_.refcount_table_offset);
  return blocks;
}

bool Qcow2File::for_each_refcount(
    const std::function<void(uint64_t cluster, unsigned count)>& visit) const {
  if (!has_refcount_table()) return false;
  const uint64_t file_clusters = this->file_clusters();
  const std::vector<Entry> blocks = refcount_blocks();
  std::vector<BigEndian<uint16_t>> counts(chunk_.bytes() / sizeof(uint16_t));
  for (size_t i = 0; i < blocks.size(); ++i) {
    const uint64_t offset = blocks[i];
    if (offset == 0) continue;
    if (!chunk_.aligned(offset) || chunk_.chunk_of(offset) >= file_clusters) return false;
    std::fill(counts.begin(), counts.end(), 0);
    static_cast<void>(file_->read(std::as_writable_bytes(std::span(counts)), offset));
    for (size_t j = 0; j < counts.size(); ++j) {
      if (counts[j] != 0) visit(i * counts.size() + j, uint16_t{counts[j]});
    }
  }
  return true;
}

void Qcow2File::note_metadata() {
  metadata_ = {0};
  const auto note = [&](uint64_t offset, uint64_t clusters) {
    for (uint64_t i = 0; i < clusters; ++i) metadata_.push_back(chunk_.chunk_of(offset) + i);
  };
  note(header_.l1.offset, clusters_for(header_.l1.entries * sizeof(Entry)));
  for (const uint64_t table : l1_) {
    if (table != 0) note(table, 1);
  }
  // One that cannot be is counted anew.
  if (has_refcount_table()) {
    note(header_.refcount_table_offset, header_.refcount_table_clusters);
    for (const uint64_t block : refcount_blocks()) {
      if (block != 0) note(block, 1);
    }
  }
  std::sort(metadata_.begin(), metadata_.end());
  const auto twice = std::adjacent_find(metadata_.begin(), metadata_.end());
  if (twice == metadata_.end()) return;
  throw damaged("two of its tables lie at byte " + std::to_string(chunk_.offset_of(*twice)) +
                "; `qemu-img check` says more");
}

void Qcow2File::trust_refcounts() {
  bool sound = true;
  const bool readable = for_each_refcount([&](uint64_t cluster, unsigned count) {
    sound = sound && count == 1 && slots_->claim({cluster, 1});
  });
  sound = sound && readable;
  // A look at what would do harm if it were used for something else. Where the table was not
  // readable, the header may give it billions of clusters.
  const auto require_taken = [&](uint64_t offset, uint64_t clusters) {
    for (uint64_t i = 0; sound && i < clusters; ++i) {
      sound = slots_->is_taken(chunk_.chunk_of(offset) + i);
    }
  };
  require_taken(0, 1);
  require_taken(header_.refcount_table_offset, header_.refcount_table_clusters);
  require_taken(header_.l1.offset, clusters_for(header_.l1.entries * sizeof(Entry)));
  for (const uint64_t table : l1_) {
    if (table != 0) require_taken(table, 1);
  }
  if (sound) return;
  mark_dirty();
  file_->sync_data();
  count_clusters();
}

void Qcow2File::write_refcounts() {
  const uint64_t per_block = chunk_.bytes() / sizeof(uint16_t);
  std::vector<Entry> table(
      static_cast<size_t>(header_.refcount_table_clusters * entries_per_table()));
  if (!table.empty()) {
    file_->read_exactly(std::as_writable_bytes(std::span(table)), header_.refcount_table_offset);
  }
  const auto wants_block = [&](uint64_t block) {
    for (uint64_t i = 0; i < per_block; ++i) {
      if (slots_->is_taken(block * per_block + i)) return true;
    }
    return false;
  };
  // Blocks take clusters, which blocks have to count: till no more are wanted.
  std::vector<SlotRun> old_table;
  for (bool changed = true; changed;) {
    changed = false;
    for (uint64_t block = 0; block * per_block < slots_->slots(); ++block) {
      if (!wants_block(block)) continue;
      if (block >= table.size()) {
        const uint64_t clusters = clusters_for((block + 1) * sizeof(Entry));
        if (header_.refcount_table_clusters > 0) {
          old_table.push_back(
              {chunk_.chunk_of(header_.refcount_table_offset), header_.refcount_table_clusters});
        }
        header_.refcount_table_offset = chunk_.offset_of(allocate_neighbours(clusters));
        header_.refcount_table_clusters = static_cast<uint32_t>(clusters);
        table.resize(static_cast<size_t>(clusters * entries_per_table()));
        changed = true;
      }
      if (table[static_cast<size_t>(block)] == 0) {
        table[static_cast<size_t>(block)] = chunk_.offset_of(allocate_cluster());
        changed = true;
      }
    }
  }
  slots_->release(old_table);
  std::vector<BigEndian<uint16_t>> wanted(static_cast<size_t>(per_block));
  std::vector<BigEndian<uint16_t>> found(static_cast<size_t>(per_block));
  for (size_t block = 0; block < table.size(); ++block) {
    if (table[block] == 0) continue;
    for (uint64_t i = 0; i < per_block; ++i) {
      wanted[static_cast<size_t>(i)] = slots_->is_taken(block * per_block + i) ? 1 : 0;
    }
    const auto bytes = std::as_writable_bytes(std::span(found));
    if (file_->read(bytes, table[block]) == bytes.size() &&
        std::memcmp(found.data(), wanted.data(), bytes.size()) == 0) {
      continue;
    }
    file_->write(std::as_bytes(std::span(wanted)), table[block]);
  }
  file_->write(std::as_bytes(std::span(table)), header_.refcount_table_offset);
}

}  // namespace cowfs
