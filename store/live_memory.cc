// The file of memory:
//
//   0              the header, a page, with the notes in its second half
//   1 GiB          images    segments of 64 KiB
//   2 GiB          handles   segments of 64 KiB
//   1 TiB          maps      segments of 528 KiB
//   2 TiB          requests  segments of 1,044 KiB
//
// Only what is touched takes memory. The file is as long as it can get from the beginning, so that
// nobody who maps a part of it can find the end moved (SIGBUS). How many segments of a region are
// in use is counted in the header after the segment can be had, so that a process that is killed in
// between leaves one that nobody knows of, which is zero still.

#include "store/live_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>

#include "store/error.h"

namespace cowfs {
namespace {

constexpr std::array<char, 8> kMagic{'c', 'o', 'w', 'f', 's', 'm', 'e', 'm'};
/// Of the layout of all regions, the header included.
constexpr uint32_t kVersion = 2;
constexpr size_t kPage = 4096;
constexpr size_t kRegions = 4;

struct Place {
  uint64_t start;
  size_t segment_bytes;
  uint32_t most_segments;
};
constexpr std::array<Place, kRegions> kPlaces{
    Place{uint64_t{1} << 30, 64 << 10, 16384},
    Place{uint64_t{2} << 30, 64 << 10, 16384},
    Place{uint64_t{1} << 40, 528 << 10, 32768},
    Place{uint64_t{2} << 40, 1044 << 10, 16384},
};
constexpr uint64_t kLength =
    kPlaces.back().start + kPlaces.back().most_segments * uint64_t{kPlaces.back().segment_bytes};

const Place& place_of(LiveMemory::Region region) { return kPlaces[static_cast<size_t>(region)]; }

}  // namespace

struct LiveMemory::Header {
  std::array<char, 8> magic;
  std::atomic<uint32_t> version;  // the last that is written: with it the header is whole
  std::array<std::atomic<uint32_t>, kRegions> used;
};

size_t LiveMemory::segment_bytes(Region region) { return place_of(region).segment_bytes; }
uint32_t LiveMemory::most_segments(Region region) { return place_of(region).most_segments; }

int LiveMemory::make() {
  const int fd = ::memfd_create("cowfs-live", MFD_CLOEXEC);
  if (fd < 0) throw Error{errno, "make memory"};
  if (::ftruncate(fd, static_cast<off_t>(kLength)) != 0) {
    const int code = errno;
    ::close(fd);
    throw Error(code, "make memory");
  }
  return fd;
}

LiveMemory::LiveMemory() { header_ = static_cast<Header*>(map(0, kPage)); }

LiveMemory::LiveMemory(int fd) : fd_(::fcntl(fd, F_DUPFD_CLOEXEC, 0)) {
  if (fd_ < 0) throw Error{errno, "live memory"};
  try {
    struct stat status {};
    if (::fstat(fd_, &status) != 0) throw Error{errno, "live memory"};
    if (!S_ISREG(status.st_mode) || static_cast<uint64_t>(status.st_size) != kLength) {
      throw Error::with_message(EINVAL, "live memory: is none, or of another layout");
    }
    header_ = static_cast<Header*>(map(0, kPage));
    const uint32_t version = header_->version.load(std::memory_order_acquire);
    if (version == 0) {
      header_->magic = kMagic;
      header_->version.store(kVersion, std::memory_order_release);
      return;
    }
    if (header_->magic != kMagic) throw Error::with_message(EINVAL, "live memory: is none");
    if (version != kVersion) {
      throw Error::with_message(EPROTONOSUPPORT, "live memory: is laid out as cowfsmem version " +
                                                     std::to_string(version) +
                                                     ", this program knows version " +
                                                     std::to_string(kVersion));
    }
    for (size_t i = 0; i < kRegions; ++i) {
      if (header_->used[i].load() > kPlaces[i].most_segments) {
        throw Error::with_message(EINVAL, "live memory: its header is damaged");
      }
    }
    taken_over_ = true;
  } catch (...) {
    for (const Mapping& mapping : mappings_) ::munmap(mapping.memory, mapping.bytes);
    ::close(fd_);
    throw;
  }
}

LiveMemory::~LiveMemory() {
  for (const Mapping& mapping : mappings_) ::munmap(mapping.memory, mapping.bytes);
  if (fd_ >= 0) ::close(fd_);
}

void* LiveMemory::map(uint64_t offset, size_t bytes) {
  const std::lock_guard lock(mutex_);
  mappings_.reserve(mappings_.size() + 1);
  void* memory =
      fd_ < 0 ? ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
              : ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_,
                       static_cast<off_t>(offset));
  if (memory == MAP_FAILED) throw Error{errno, "live memory"};
  mappings_.push_back({memory, bytes});
  return memory;
}

void* LiveMemory::notes() const {
  static_assert(sizeof(Header) <= kPage - kNoteBytes);
  return reinterpret_cast<std::byte*>(header_) + (kPage - kNoteBytes);
}

uint32_t LiveMemory::segments(Region region) const {
  return header_->used[static_cast<size_t>(region)].load(std::memory_order_acquire);
}

void* LiveMemory::add_segment(Region region) {
  const uint32_t index = segments(region);
  if (index >= place_of(region).most_segments) throw Error(ENOMEM, "live memory");
  void* const memory = map_segment(region, index);
  header_->used[static_cast<size_t>(region)].store(index + 1, std::memory_order_release);
  return memory;
}

void* LiveMemory::map_segment(Region region, uint32_t index) {
  const Place& place = place_of(region);
  return map(place.start + index * uint64_t{place.segment_bytes}, place.segment_bytes);
}

}  // namespace cowfs
