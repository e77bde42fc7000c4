#include "tests/crash/disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>

#include "store/error.h"
#include "store/file.h"

namespace cowfs::crash {
namespace {

uint64_t blocks(uint64_t bytes) { return (bytes + kBlock - 1) / kBlock; }

std::ptrdiff_t index(uint64_t at) { return static_cast<std::ptrdiff_t>(at); }

}  // namespace

void FileContent::grow(uint64_t size) {
  if (size <= bytes_.size()) return;
  bytes_.resize(size);
  allocated_.resize(blocks(size));
}

void FileContent::write(uint64_t offset, std::span<const std::byte> data) {
  if (data.empty()) return;
  grow(offset + data.size());
  std::copy(data.begin(), data.end(), bytes_.begin() + index(offset));
  std::fill(allocated_.begin() + index(offset / kBlock),
            allocated_.begin() + index(blocks(offset + data.size())), true);
}

void FileContent::truncate(uint64_t size) {
  bytes_.resize(size);
  allocated_.resize(blocks(size));
}

void FileContent::punch(uint64_t offset, uint64_t length) {
  const uint64_t end = std::min(offset + length, size());
  if (offset >= end) return;
  std::fill(bytes_.begin() + index(offset), bytes_.begin() + index(end), std::byte{0});
  const uint64_t first = blocks(offset);
  const uint64_t last = end == size() ? blocks(end) : end / kBlock;
  if (first < last) {
    std::fill(allocated_.begin() + index(first), allocated_.begin() + index(last), false);
  }
}

void FileContent::allocate(uint64_t offset, uint64_t length) {
  grow(offset + length);
  std::fill(allocated_.begin() + index(offset / kBlock),
            allocated_.begin() + index(blocks(offset + length)), true);
}

std::string Operation::text() const {
  const std::string range = " " + std::to_string(offset) + "+" + std::to_string(length);
  const std::string file = std::to_string(inode);
  switch (kind) {
    case Kind::write:
      return "write " + file + range;
    case Kind::punch:
      return "punch " + file + range;
    case Kind::truncate:
      return "truncate " + file + " to " + std::to_string(length);
    case Kind::allocate:
      return "allocate " + file + range;
    case Kind::link:
      return "make " + file + "/" + name + " = " + std::to_string(target);
    case Kind::unlink:
      return "unlink " + file + "/" + name;
    case Kind::rename:
      return "rename " + std::to_string(old_directory) + "/" + old_name + " to " + file + "/" +
             name;
    case Kind::sync:
      return "sync " + file + (end == kNever ? " (not returned)" : "");
  }
  return "";
}

FileContent& Disk::change(Inode inode) {
  // A file whose entry is missing has its content all the same.
  std::shared_ptr<FileContent>& file = files_[inode];
  if (file == nullptr) {
    file = std::make_shared<FileContent>();
  } else if (file.use_count() > 1) {
    file = std::make_shared<FileContent>(*file);
  }
  return *file;
}

void Disk::apply(const Operation& operation) {
  switch (operation.kind) {
    case Operation::Kind::write:
      change(operation.inode).write(operation.offset / kSector * kSector, operation.sectors);
      break;
    case Operation::Kind::punch:
      change(operation.inode).punch(operation.offset, operation.length);
      break;
    case Operation::Kind::truncate:
      change(operation.inode).truncate(operation.length);
      break;
    case Operation::Kind::allocate:
      change(operation.inode).allocate(operation.offset, operation.length);
      break;
    case Operation::Kind::link:
      entries_[{operation.inode, operation.name}] = operation.target;
      if (operation.is_directory) {
        directories_.insert(operation.target);
      } else {
        change(operation.target);
      }
      break;
    case Operation::Kind::unlink:
      entries_.erase({operation.inode, operation.name});
      break;
    case Operation::Kind::rename:
      entries_.erase({operation.old_directory, operation.old_name});
      entries_[{operation.inode, operation.name}] = operation.target;
      break;
    case Operation::Kind::sync:
      break;
  }
}

std::map<std::string, Inode> Disk::entries(Inode directory) const {
  std::map<std::string, Inode> found;
  for (auto at = entries_.lower_bound({directory, ""});
       at != entries_.end() && at->first.first == directory; ++at) {
    found.emplace(at->first.second, at->second);
  }
  return found;
}

Inode Disk::lookup(Inode directory, const std::string& name) const {
  const auto found = entries_.find({directory, name});
  return found == entries_.end() ? 0 : found->second;
}

template <typename Visit>
void Disk::walk(Inode directory, const std::string& path, const Visit& visit) const {
  for (const auto& [name, inode] : entries(directory)) {
    visit(path + "/" + name, inode);
    if (is_directory(inode)) walk(inode, path + "/" + name, visit);
  }
}

uint64_t Disk::hash() const {
  XXH3_state_t* state = XXH3_createState();
  XXH3_64bits_reset(state);
  walk(kRoot, "", [&](const std::string& path, Inode inode) {
    XXH3_64bits_update(state, path.data(), path.size() + 1);
    if (is_directory(inode) || path.ends_with("/lock")) return;
    const FileContent& content = file(inode);
    const uint64_t size = content.size();
    XXH3_64bits_update(state, &size, sizeof(size));
    XXH3_64bits_update(state, content.bytes().data(), content.size());
    for (uint64_t block = 0; block * kBlock < size; ++block) {
      const bool allocated = content.allocated(block);
      XXH3_64bits_update(state, &allocated, sizeof(allocated));
    }
  });
  const uint64_t hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return hash;
}

void Disk::materialise(const std::string& root) const {
  walk(kRoot, root, [&](const std::string& path, Inode inode) {
    if (is_directory(inode)) {
      if (::mkdir(path.c_str(), 0700) != 0) throw Error(errno, path);
      return;
    }
    const FileContent& content = file(inode);
    const File out(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    for (uint64_t at = 0; at < content.size();) {
      uint64_t end = at;  // of a run of blocks that have space
      while (end < content.size() && content.allocated(end / kBlock)) end += kBlock;
      end = std::min(end, content.size());
      if (end > at) out.write(content.bytes().subspan(at, end - at), at);
      at = end > at ? end : at + kBlock;
    }
    out.truncate(content.size());
  });
}

}  // namespace cowfs::crash
