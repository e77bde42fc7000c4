#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "store/live_memory.h"

namespace cowfs {

/// Requests of the kernel in LiveMemory, from their arrival until they are answered, for a kernel
/// that does not send them again (before Linux 6.9): what a server leaves, the next one finds here.
/// Each thread reads into a slot of its own; what it does not answer itself is set aside in
/// another. Thread-safe, but a slot is used by one thread.
class RequestSlots {
 public:
  class Slot;

  /// Finds what an earlier process left. Of what that one had done, it sends the answers, to
  /// `connection`, which are once-only like that. Error ENOMEM.
  RequestSlots(std::shared_ptr<LiveMemory> memory, int connection);
  RequestSlots(const RequestSlots&) = delete;
  RequestSlots& operator=(const RequestSlots&) = delete;

  /// A slot for a thread to read requests into, from now on.
  [[nodiscard]] Slot& slot_for_reading();
  /// RequestBuffer::kBytes of memory.
  static std::byte* buffer(Slot& slot);

  /// The next request that an earlier process left and that is to be done again; null if there is
  /// none. It stays in its slot until it is answered.
  [[nodiscard]] Slot* next_left();
  /// Answers all of them with an error instead; an errno value.
  void refuse_left(int error);

  /// To be called when the thread of the slot has done with the request in it. If it is not
  /// answered, somebody else will answer it later: it is moved out of the way. ENOMEM: it stays,
  /// and nothing may be read into the slot.
  void set_aside(Slot& slot);

  /// Writes an answer to the connection; to what writev(2) returns, with errno. `own` is the slot
  /// of the calling thread, or null. From before the answer is sent until it is known to be sent,
  /// it lies in the slot, so that nothing that was done is done again.
  ssize_t answer(Slot* own, std::span<const iovec> reply);

 private:
  Slot& map(uint32_t index);
  Slot& free_slot();
  void give_back(Slot& slot);
  ssize_t answer_in(Slot& slot, std::span<const iovec> reply) const;

  const std::shared_ptr<LiveMemory> memory_;
  const int connection_;
  std::mutex mutex_;  // guards what follows, and answers by other threads than the slot's
  std::vector<Slot*> reading_;
  std::vector<Slot*> free_;
  std::vector<Slot*> left_;
  std::unordered_map<uint64_t, Slot*> aside_;  // by request number; what was left, too
};

}  // namespace cowfs
