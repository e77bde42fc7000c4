// A slot holds a request if the number in the request's own header is not 0. The kernel writes that
// when it hands the request out, so that there is no moment at which the kernel takes it for read
// and a process that comes after does not see it. It is set to 0 before the slot is read into
// again, and when the answer has been sent.
//
// If the process dies between the sending of an answer and that, the request must not be done
// again: whoever asked has gone on since, and may have written there anew. Hence the answer is put
// beside the request before it is sent. A process that finds an answer sends it, and does nothing
// else; if it had been sent, the kernel knows no request of that number any more (ENOENT). Only
// what was read is not kept, since to read again does no harm.

#include "fs/request_slots.h"

#include <linux/fuse.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fs/request_buffer.h"
#include "store/error.h"
#include "store/stop_point.h"

namespace cowfs {
namespace {

/// A ControlMessage and more.
constexpr size_t kAnswerBytes = 3 * RequestBuffer::kPage - 64;

/// The bit in the number of an answer that is one to an interruption (FUSE_INT_REQ_BIT).
constexpr uint64_t kOfInterruption = 1;

bool has_answer(uint32_t operation) {
  return operation != FUSE_FORGET && operation != FUSE_BATCH_FORGET &&
         operation != FUSE_INTERRUPT && operation != FUSE_NOTIFY_REPLY;
}

bool only_reads(uint32_t operation) {
  return operation == FUSE_READ || operation == FUSE_READDIR || operation == FUSE_READDIRPLUS;
}

uint64_t number_of(std::span<const iovec> reply) {
  return static_cast<const fuse_out_header*>(reply.front().iov_base)->unique;
}

}  // namespace

class RequestSlots::Slot {
 public:
  std::byte* buffer() { return buffer_.data(); }
  [[nodiscard]] uint64_t number() { return number_ref().load(std::memory_order_acquire); }
  [[nodiscard]] uint32_t operation() const { return header().opcode; }
  [[nodiscard]] size_t size() const { return header().len; }
  [[nodiscard]] bool makes_sense() const {
    return size() >= sizeof(fuse_in_header) && size() <= buffer_.size();
  }

  /// Takes over what is in another slot; from the last store on it is here.
  void copy_from(Slot& other) {
    std::memcpy(buffer_.data() + sizeof(fuse_in_header),
                other.buffer_.data() + sizeof(fuse_in_header),
                other.size() - sizeof(fuse_in_header));
    fuse_in_header copy = other.header();
    copy.unique = 0;
    std::memcpy(buffer_.data(), &copy, sizeof(copy));
    number_ref().store(other.number(), std::memory_order_release);
  }
  void clear() {
    number_ref().store(0, std::memory_order_release);
    answer_size_.store(0, std::memory_order_release);
  }
  /// Gives its memory back.
  void release() {
    clear();
    static_cast<void>(::madvise(buffer_.data(), buffer_.size(), MADV_REMOVE));
  }

  void keep_answer(std::span<const iovec> answer) {
    if (only_reads(operation())) return;
    size_t size = 0;
    for (const iovec& piece : answer) size += piece.iov_len;
    if (size > answer_.size()) return;  // there is none
    size = 0;
    for (const iovec& piece : answer) {
      std::memcpy(answer_.data() + size, piece.iov_base, piece.iov_len);
      size += piece.iov_len;
    }
    answer_size_.store(static_cast<uint32_t>(size), std::memory_order_release);
  }
  /// Empty if there is none.
  [[nodiscard]] std::span<const std::byte> answer() const {
    return std::span(answer_).first(std::min<size_t>(answer_size_.load(), answer_.size()));
  }

 private:
  [[nodiscard]] const fuse_in_header& header() const {
    return *reinterpret_cast<const fuse_in_header*>(buffer_.data());
  }
  std::atomic_ref<uint64_t> number_ref() {
    return std::atomic_ref(reinterpret_cast<fuse_in_header*>(buffer_.data())->unique);
  }

  std::atomic<uint32_t> answer_size_;
  std::array<std::byte, kAnswerBytes> answer_;
  alignas(RequestBuffer::kPage) std::array<std::byte, RequestBuffer::kBytes> buffer_;
};

RequestSlots::RequestSlots(std::shared_ptr<LiveMemory> memory, int connection)
    : memory_(std::move(memory)), connection_(connection) {
  static_assert(sizeof(Slot) == 3 * RequestBuffer::kPage + RequestBuffer::kBytes);
  const uint32_t used = memory_->segments(LiveMemory::Region::requests);
  free_.reserve(used);
  for (uint32_t i = 0; i < used; ++i) {
    Slot& slot = map(i);
    const uint64_t number = slot.number();
    // A copy that was under way when the process died is in two slots.
    if (number == 0 || !slot.makes_sense() || !has_answer(slot.operation()) ||
        aside_.contains(number)) {
      give_back(slot);
      continue;
    }
    if (const std::span<const std::byte> answer = slot.answer(); !answer.empty()) {
      static_cast<void>(!::write(connection_, answer.data(), answer.size()));
      give_back(slot);
      continue;
    }
    aside_.emplace(number, &slot);
    left_.push_back(&slot);
    // If it was interrupted, and that was read, the kernel is to say so again.
    const fuse_out_header interruption{
        .len = sizeof(interruption), .error = -EAGAIN, .unique = number | kOfInterruption};
    static_cast<void>(!::write(connection_, &interruption, sizeof(interruption)));
  }
}

std::byte* RequestSlots::buffer(Slot& slot) { return slot.buffer(); }

RequestSlots::Slot& RequestSlots::map(uint32_t index) {
  return *static_cast<Slot*>(memory_->map_segment(LiveMemory::Region::requests, index));
}

RequestSlots::Slot& RequestSlots::free_slot() {
  if (free_.empty()) {
    // To be given back when there may be no memory.
    free_.reserve(memory_->segments(LiveMemory::Region::requests) + size_t{1});
    return *static_cast<Slot*>(memory_->add_segment(LiveMemory::Region::requests));
  }
  Slot& slot = *free_.back();
  free_.pop_back();
  return slot;
}

void RequestSlots::give_back(Slot& slot) {
  slot.release();
  free_.push_back(&slot);
}

RequestSlots::Slot& RequestSlots::slot_for_reading() {
  const std::lock_guard lock(mutex_);
  reading_.reserve(reading_.size() + 1);
  Slot& slot = free_slot();
  reading_.push_back(&slot);
  return slot;
}

RequestSlots::Slot* RequestSlots::next_left() {
  const std::lock_guard lock(mutex_);
  if (left_.empty()) return nullptr;
  Slot* const slot = left_.back();
  left_.pop_back();
  return slot;
}

void RequestSlots::refuse_left(int error) {
  while (Slot* const slot = next_left()) {
    fuse_out_header refusal{.len = sizeof(refusal), .error = -error, .unique = slot->number()};
    const std::array<iovec, 1> reply{iovec{&refusal, sizeof(refusal)}};
    answer(nullptr, reply);
  }
}

void RequestSlots::set_aside(Slot& slot) {
  if (slot.number() == 0) return;
  const std::lock_guard lock(mutex_);
  const uint64_t number = slot.number();
  if (number == 0) return;  // another thread has answered it meanwhile
  if (!has_answer(slot.operation())) return slot.clear();
  Slot*& place = aside_[number];
  try {
    place = &free_slot();
  } catch (...) {
    aside_.erase(number);
    throw;
  }
  place->copy_from(slot);
  slot.clear();
}

ssize_t RequestSlots::answer(Slot* own, std::span<const iovec> reply) {
  const uint64_t number = number_of(reply);
  if (own != nullptr && number != 0 && own->number() == number) return answer_in(*own, reply);
  const std::lock_guard lock(mutex_);
  if (const auto found = aside_.find(number); found != aside_.end()) {
    Slot& slot = *found->second;
    const ssize_t written = answer_in(slot, reply);
    const int code = errno;
    aside_.erase(found);
    give_back(slot);
    errno = code;
    return written;
  }
  // The thread that has read it may be about to set it aside.
  const auto reading = std::find_if(reading_.begin(), reading_.end(), [&](Slot* slot) {
    return number != 0 && slot->number() == number;
  });
  if (reading != reading_.end()) return answer_in(**reading, reply);
  return ::writev(connection_, reply.data(), static_cast<int>(reply.size()));
}

ssize_t RequestSlots::answer_in(Slot& slot, std::span<const iovec> reply) const {
  slot.keep_answer(reply);
  stop_point(StopPoint::answer_not_sent);
  const ssize_t written = ::writev(connection_, reply.data(), static_cast<int>(reply.size()));
  const int code = errno;
  stop_point(StopPoint::answer_sent);
  slot.clear();
  errno = code;
  return written;
}

}  // namespace cowfs
