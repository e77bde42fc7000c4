#include "store/base.h"

#include <sys/sysmacros.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "store/error.h"

namespace cowfs {
namespace {

constexpr uint64_t kEnds = 1 << 20;
constexpr uint64_t kSampleBytes = 64 << 10;
constexpr uint64_t kSamples = 256;

int64_t nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

/// XXH3-128 of pieces, one after the other.
class Hash {
 public:
  using Read = std::function<void(std::span<std::byte> buffer, uint64_t offset)>;

  Hash(Read read, const std::string& path)
      : read_(std::move(read)), state_(XXH3_createState(), &XXH3_freeState) {
    if (state_ == nullptr) throw Error(ENOMEM, "hash of " + path);
    XXH3_128bits_reset(state_.get());
  }

  /// A MiB at most.
  void add(uint64_t offset, uint64_t length) {
    const std::span piece(buffer_.data(), static_cast<size_t>(length));
    read_(piece, offset);
    XXH3_128bits_update(state_.get(), piece.data(), piece.size());
  }

  [[nodiscard]] std::vector<std::byte> digest() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
    const auto* bytes = reinterpret_cast<const std::byte*>(canonical.digest);
    return {bytes, bytes + sizeof(canonical.digest)};
  }

 private:
  const Read read_;
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kEnds);
};

BaseFileRow identity_of(const BaseFile& file) {
  const struct stat status = file.file.status();
  BaseFileRow row{.path = file.file.path(),
                  .device = status.st_dev,
                  .inode = status.st_ino,
                  .size = file.file.size(),
                  .mtime_ns = nanoseconds(status.st_mtim),
                  .ctime_ns = nanoseconds(status.st_ctim),
                  .fingerprint = {},
                  .format = file.format};
  if (file.is_device) {
    row.device = status.st_rdev;
    row.inode = 0;
    row.mtime_ns = 0;
    row.ctime_ns = 0;
  }
  return row;
}

}  // namespace

Base::Base(const std::string& path, const BaseOptions& options, const FaultHook* hook)
    : chain_(path, options, hook), snapshot_(options.snapshot) {}

std::optional<uint64_t> Base::next_data(uint64_t offset, uint64_t end) const {
  BaseContent::Effort effort;
  return content().next_data(offset, end, effort);
}

uint64_t Base::next_hole(uint64_t offset, uint64_t end) const {
  BaseContent::Effort effort;
  return content().next_hole(offset, end, effort);
}

BaseRow Base::identity() const {
  BaseRow row;
  static_cast<BaseFileRow&>(row) = identity_of(*files().front());
  row.virtual_size = size();
  row.snapshot = snapshot_;
  for (size_t i = 1; i < files().size(); ++i) row.backing.push_back(identity_of(*files()[i]));
  return row;
}

BaseRow Base::identity_and_fingerprints() const {
  BaseRow row = identity();
  row.fingerprint = fingerprint();
  for (size_t i = 1; i < files().size(); ++i) {
    row.backing[i - 1].fingerprint = fingerprint_of(*files()[i]);
  }
  return row;
}

std::vector<std::byte> Base::fingerprint() const { return fingerprint_of(*files().front()); }

std::vector<std::byte> fingerprint_of(const BaseFile& file) {
  Hash hash(
      [&](std::span<std::byte> buffer, uint64_t offset) { file.file.read_exactly(buffer, offset); },
      file.file.path());
  const uint64_t size = file.length;
  if (size <= 2 * kEnds + kSamples * kSampleBytes) {
    for (uint64_t at = 0; at < size; at += kEnds) hash.add(at, std::min(kEnds, size - at));
  } else {
    hash.add(0, kEnds);
    const uint64_t gap = (size - 2 * kEnds - kSampleBytes) / (kSamples - 1);
    for (uint64_t i = 0; i < kSamples; ++i) hash.add(kEnds + i * gap, kSampleBytes);
    hash.add(size - kEnds, kEnds);
  }
  return hash.digest();
}

std::vector<std::byte> Base::checksum(const std::function<void(uint64_t done)>& advance) const {
  Hash hash([&](std::span<std::byte> buffer, uint64_t offset) { read(buffer, offset); }, path());
  for (uint64_t at = 0; at < size();) {
    const uint64_t length = std::min(kEnds, size() - at);
    hash.add(at, length);
    at += length;
    advance(at);
  }
  return hash.digest();
}

BaseOptions options_of(const BaseRow& recorded) {
  BaseOptions options;
  options.recorded.push_back({recorded.path, recorded.format});
  for (const BaseFileRow& file : recorded.backing) {
    options.recorded.push_back({file.path, file.format});
  }
  options.snapshot = recorded.snapshot;
  return options;
}

}  // namespace cowfs
