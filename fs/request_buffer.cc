#include "fs/request_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "store/error.h"

namespace cowfs {
namespace {

/// libfuse receives at most 1 MiB of data and 4 KiB of headers.
constexpr size_t kHeader = 4096;
constexpr size_t kData = 1 << 20;
constexpr size_t kBytes = kHeader + kData + kHeader;

thread_local RequestBuffer* current = nullptr;

}  // namespace

RequestBuffer::RequestBuffer() {
  void* memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) throw Error(errno, "request buffer");
  static_cast<void>(::mlock(memory, kBytes));  // as far as RLIMIT_MEMLOCK goes
  memory_ = static_cast<std::byte*>(memory);
  current = this;
}

RequestBuffer::~RequestBuffer() {
  current = nullptr;
  ::munmap(memory_, kBytes);
}

std::span<std::byte> RequestBuffer::reply_room(size_t size) {
  if (current == nullptr || size > kData) return {};
  return {current->memory_ + kHeader, size};
}

}  // namespace cowfs
