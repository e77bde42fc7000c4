#pragma once

#include <cstddef>
#include <span>

namespace cowfs {

/// The memory with which one thread talks to /dev/fuse: requests are received into it, and the data
/// of a read's reply is put behind the request's arguments, which are decoded by then. Allocated,
/// touched and locked up front: below a block device there may be no memory later, and a copy that
/// the kernel makes into untouched memory of a dying process fails the request.
class RequestBuffer {
 public:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kBytes = (size_t{1} << 20) + 2 * kPage;

  RequestBuffer();
  /// With memory that another process can see, of kBytes; it is touched and locked here.
  explicit RequestBuffer(std::byte* memory);
  RequestBuffer(const RequestBuffer&) = delete;
  RequestBuffer& operator=(const RequestBuffer&) = delete;
  ~RequestBuffer();

  [[nodiscard]] std::byte* memory() const { return memory_; }

  /// Room for a reply to the request being handled by this thread; empty if `size` is too large or
  /// this thread has no buffer.
  static std::span<std::byte> reply_room(size_t size);

 private:
  void use();

  std::byte* memory_;
  const bool own_;
};

}  // namespace cowfs
