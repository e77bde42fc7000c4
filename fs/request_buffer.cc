#include "fs/request_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "store/error.h"

namespace cowfs {
namespace {

/// libfuse receives at most 1 MiB of data and 4 KiB of headers.
constexpr size_t kHeader = RequestBuffer::kPage;
constexpr size_t kData = 1 << 20;
static_assert(RequestBuffer::kBytes == kHeader + kData + kHeader);

thread_local RequestBuffer* buffer_in_use = nullptr;

}  // namespace

RequestBuffer::RequestBuffer() : own_(true) {
  void* memory =
      ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw Error{errno, "request buffer"};
  memory_ = static_cast<std::byte*>(memory);
  use();
}

RequestBuffer::RequestBuffer(std::byte* memory) : memory_(memory), own_(false) { use(); }

void RequestBuffer::use() {
  // As far as RLIMIT_MEMLOCK goes. Locking touches, but may be refused.
  if (::mlock(memory_, kBytes) != 0) {
    volatile std::byte* const memory = memory_;
    for (size_t at = 0; at < kBytes; at += kPage) memory[at] = memory[at];
  }
  buffer_in_use = this;
}

RequestBuffer::~RequestBuffer() {
  buffer_in_use = nullptr;
  if (own_) ::munmap(memory_, kBytes);
}

std::span<std::byte> RequestBuffer::reply_room(size_t size) {
  if (buffer_in_use == nullptr || size > kData) return {};
  return {buffer_in_use->memory_ + kHeader, size};
}

}  // namespace cowfs
