#include "store/base.h"

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>

#include "store/chunk_size.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr uint64_t kEnds = 1 << 20;
constexpr uint64_t kSampleBytes = 64 << 10;
constexpr uint64_t kSamples = 256;

File open_base(const std::string& path, const FaultHook* hook) {
  std::error_code ignored;
  const std::string absolute = std::filesystem::absolute(path, ignored).lexically_normal();
  struct stat status {};
  if (::stat(absolute.c_str(), &status) != 0) throw Error{errno, "base " + absolute};
  if (S_ISDIR(status.st_mode)) {
    throw Error::with_message(EISDIR, "base " + absolute +
                                          ": is a directory; a raw image file or a block device "
                                          "can serve as base");
  }
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    throw Error::with_message(
        EINVAL, "base " + absolute + ": is neither a regular file nor a block device");
  }
  try {
    // Only the owner and root may leave the access time alone.
    return {absolute, O_RDONLY | O_NOATIME, 0, hook};
  } catch (const Error& error) {
    if (error.code() != EPERM) throw Error(error.code(), "base " + absolute);
  }
  return {absolute, O_RDONLY, 0, hook};
}

int64_t nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

/// XXH3-128 of pieces of a base, one after the other.
class Hash {
 public:
  explicit Hash(const Base& base) : base_(base), state_(XXH3_createState(), &XXH3_freeState) {
    if (state_ == nullptr) throw Error(ENOMEM, "hash of " + base.path());
    XXH3_128bits_reset(state_.get());
  }

  /// A MiB at most.
  void add(uint64_t offset, uint64_t length) {
    const std::span piece(buffer_.data(), static_cast<size_t>(length));
    base_.read(piece, offset);
    XXH3_128bits_update(state_.get(), piece.data(), piece.size());
  }

  [[nodiscard]] std::vector<std::byte> digest() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
    const auto* bytes = reinterpret_cast<const std::byte*>(canonical.digest);
    return {bytes, bytes + sizeof(canonical.digest)};
  }

 private:
  const Base& base_;
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kEnds);
};

}  // namespace

Base::Base(const std::string& path, const FaultHook* hook)
    : file_(open_base(path, hook)),
      size_(file_.size()),
      is_device_(S_ISBLK(file_.status().st_mode)) {
  if (size_ == 0) throw Error::with_message(EINVAL, "base " + file_.path() + ": is empty");
  if (size_ > kMaxImageSize) {
    throw Error::with_message(EFBIG, "base " + file_.path() + ": is larger than 1 PiB");
  }
}

BaseRow Base::identity() const {
  const struct stat status = file_.status();
  BaseRow row{.path = path(),
              .device = status.st_dev,
              .inode = status.st_ino,
              .size = file_.size(),
              .mtime_ns = nanoseconds(status.st_mtim),
              .ctime_ns = nanoseconds(status.st_ctim),
              .fingerprint = {},
              .checksum = {}};
  if (is_device_) {
    row.device = status.st_rdev;
    row.inode = 0;
    row.mtime_ns = 0;
    row.ctime_ns = 0;
  }
  return row;
}

std::vector<std::byte> Base::fingerprint() const {
  Hash hash(*this);
  if (size_ <= 2 * kEnds + kSamples * kSampleBytes) {
    for (uint64_t at = 0; at < size_; at += kEnds) hash.add(at, std::min(kEnds, size_ - at));
  } else {
    hash.add(0, kEnds);
    const uint64_t gap = (size_ - 2 * kEnds - kSampleBytes) / (kSamples - 1);
    for (uint64_t i = 0; i < kSamples; ++i) hash.add(kEnds + i * gap, kSampleBytes);
    hash.add(size_ - kEnds, kEnds);
  }
  return hash.digest();
}

std::vector<std::byte> Base::checksum(const std::function<void(uint64_t done)>& advance) const {
  Hash hash(*this);
  for (uint64_t at = 0; at < size_;) {
    const uint64_t length = std::min(kEnds, size_ - at);
    hash.add(at, length);
    at += length;
    advance(at);
  }
  return hash.digest();
}

BaseVerdict judge_base(const Base& base, const BaseRow& recorded, bool accept_changed) {
  BaseRow now = base.identity();
  now.checksum = recorded.checksum;
  now.written_ns = recorded.written_ns;
  const bool same_place = now.device == recorded.device && now.inode == recorded.inode;
  const bool same_times = now.mtime_ns == recorded.mtime_ns && now.ctime_ns == recorded.ctime_ns;
  const bool written = recorded.written_ns.has_value();
  if (same_place && same_times && now.size == recorded.size && !base.is_device() && !written) {
    now.fingerprint = recorded.fingerprint;
    if (accept_changed && !now.checksum.empty()) {
      now.checksum.clear();
      return {BaseVerdict::Kind::same_content,
              "accepted as asked; the checksum of what it was is dropped", now};
    }
    return {BaseVerdict::Kind::unchanged, "", now};
  }

  now.fingerprint = base.fingerprint();
  const std::string way_on =
      "to use it all the same, mount it with --accept-changed-base: every image then reads the "
      "base as it "
      "is now, and an image that relies on what has changed is damaged";
  if (now.size != recorded.size || now.fingerprint != recorded.fingerprint) {
    if (accept_changed) {
      now.checksum.clear();
      now.written_ns.reset();
      return {BaseVerdict::Kind::same_content, "its content changed; accepted as asked", now};
    }
    const std::string what = now.size != recorded.size
                                 ? "its size was " + std::to_string(recorded.size) +
                                       " bytes and is " + std::to_string(now.size)
                                 : "its content is not what it was (the fingerprint differs)";
    return {BaseVerdict::Kind::refused,
            "is not the base that this store was made for: " + what +
                ". Bring the old base back, or, " + way_on,
            now};
  }
  const bool same_mtime = now.mtime_ns == recorded.mtime_ns;
  if (accept_changed && (written || !same_mtime)) {
    now.written_ns.reset();
    return {BaseVerdict::Kind::same_content,
            same_mtime ? "somebody wrote to it, or could have; accepted as asked"
                       : "its modification time changed; accepted as asked",
            now};
  }
  if (same_mtime) {
    if (written) {
      // Still in doubt, since a sample does not see everything; so it stays on record.
      return {
          BaseVerdict::Kind::same_content,
          "somebody wrote to it, or could have, while it was in use, or a full comparison found "
          "it changed; its samples are the same",
          now};
    }
    if (!base.is_device()) {
      return {BaseVerdict::Kind::same_content,
              "moved, copied or restored; size, modification time and fingerprint are the same",
              now};
    }
    if (now.device == recorded.device) return {BaseVerdict::Kind::unchanged, "", now};
    return {BaseVerdict::Kind::same_content, "another device with the same fingerprint", now};
  }
  const std::string compare =
      recorded.checksum.empty()
          ? "A full comparison is not possible, since no checksum of the whole base was recorded; "
          : "A full comparison with the recorded checksum tells, and accepts it if it is the same: "
            "`cowfs check --base --base-path " +
                base.path() + "` on the store; or, ";
  return {BaseVerdict::Kind::refused,
          "was modified since the store was made: the modification time is another, and the "
          "fingerprint, which sees only samples, is the same. " +
              compare + way_on,
          now};
}

}  // namespace cowfs
