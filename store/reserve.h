#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

#include "store/file.h"

namespace cowfs {

/// Room for the catalog on a full disk (I7): a file in the store that holds space and no data. When
/// a commit finds no space it is given up, and made again once there is plenty. Thread-safe. A
/// hint, not a promise: nothing depends on it but that commits go on for longer.
class Reserve {
 public:
  /// Of the store `directory`. Makes nothing yet.
  explicit Reserve(const std::string& directory, const FaultHook* hook = nullptr);

  /// Gives its space back to the file system. Whether it held some.
  bool give_up();

  /// Makes it whole if it is not and twice its size is free; what keeps it from that is no error.
  /// Whether it is whole.
  bool renew();

  /// Whether images may take new space: not while it is given up, or they would take what was meant
  /// for the catalog. Tries to make it whole first.
  bool spares_images() { return !given_up_.load() || renew(); }

  /// Bytes that it holds now; 0 if there is none.
  [[nodiscard]] uint64_t held() const;
  /// Bytes that it holds when it is whole: 1/64 of the file system, from 256 KiB to 16 MiB.
  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] static std::string path_in(const std::string& directory) {
    return directory + "/reserve";
  }

 private:
  /// EINVAL if it is no file of its own.
  [[nodiscard]] File open_regular(int flags) const;

  const std::string directory_;
  const FaultHook* hook_;
  const uint64_t size_;
  std::mutex mutex_;  // one change at a time
  std::atomic<bool> given_up_ = false;
};

}  // namespace cowfs
