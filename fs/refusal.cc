#include "fs/refusal.h"

#include <linux/fuse.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

#include "fs/request_slots.h"
#include "fs/resend.h"
#include "fs/server_notes.h"
#include "store/error.h"
#include "store/live_memory.h"

namespace cowfs {
namespace {

constexpr size_t kLargestRequest = FUSE_MIN_READ_BUFFER + (1U << 20);

}  // namespace

Refusal::Refusal() : request_(kLargestRequest) {}

void Refusal::begin(int connection, int live) {
  // Servers that die again and again may have left anything there.
  attempt([&] {
    auto memory = std::make_shared<LiveMemory>(live);
    if (server_notes(*memory).init.resend != Resend::slots) return;
    ::munlockall();  // or each slot would be touched as a whole
    RequestSlots(memory, connection).refuse_left(EIO);
  });
  // Also where that is not the way: it does no harm.
  static_cast<void>(ask_to_send_again(connection));
}

bool Refusal::answer(int connection) {
  const ssize_t count = ::read(connection, request_.data(), request_.size());
  if (count < 0) return errno != ENODEV;
  if (count < static_cast<ssize_t>(sizeof(fuse_in_header))) return true;
  const auto& header = *reinterpret_cast<const fuse_in_header*>(request_.data());
  switch (header.opcode) {
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
      return true;  // they have no answer
    default:
      break;
  }
  const fuse_out_header reply{.len = sizeof(reply), .error = -EIO, .unique = header.unique};
  static_cast<void>(!::write(connection, &reply, sizeof(reply)));
  return true;
}

}  // namespace cowfs
