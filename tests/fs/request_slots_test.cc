#include "fs/request_slots.h"

#include <gtest/gtest.h>
#include <linux/fuse.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fs/request_buffer.h"

namespace cowfs {
namespace {

// A connection that keeps what is written to it, and a memory that outlives each RequestSlots, as
// if each were another process's.
class RequestSlotsTest : public testing::Test {
 protected:
  RequestSlotsTest() : memory_(LiveMemory::make()) {
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, connection_.data()), 0);
    Successor();
  }
  ~RequestSlotsTest() override {
    close(memory_);
    for (const int fd : connection_) close(fd);
  }

  // The process before is gone from here on.
  void Successor() {
    slots_ = std::make_unique<RequestSlots>(std::make_shared<LiveMemory>(memory_), connection_[0]);
  }

  // As the kernel hands a request out.
  static void Receive(RequestSlots::Slot& slot, uint64_t number, uint32_t operation,
                      const std::string& data = "") {
    fuse_in_header header{};
    header.len = static_cast<uint32_t>(sizeof(header) + data.size());
    header.opcode = operation;
    header.unique = number;
    std::memcpy(RequestSlots::buffer(slot), &header, sizeof(header));
    std::memcpy(RequestSlots::buffer(slot) + sizeof(header), data.data(), data.size());
  }

  void Answer(RequestSlots::Slot* own, uint64_t number, const std::string& data = "") {
    fuse_out_header header{
        .len = static_cast<uint32_t>(sizeof(header) + data.size()), .error = 0, .unique = number};
    std::string copy = data;
    const std::array<iovec, 2> reply{iovec{&header, sizeof(header)},
                                     iovec{copy.data(), copy.size()}};
    EXPECT_GE(slots_->answer(own, reply), 0);
  }

  struct Sent {
    uint64_t number;
    int error;
    std::string data;
  };
  // What the connection got next.
  std::optional<Sent> Next() const {
    std::array<char, 16384> bytes{};
    const ssize_t count = recv(connection_[1], bytes.data(), bytes.size(), 0);
    if (count < static_cast<ssize_t>(sizeof(fuse_out_header))) return std::nullopt;
    fuse_out_header header{};
    std::memcpy(&header, bytes.data(), sizeof(header));
    return Sent{
        header.unique, header.error,
        std::string(bytes.data() + sizeof(header), static_cast<size_t>(count) - sizeof(header))};
  }
  void ExpectLeft(uint64_t number, const std::string& data = "") {
    RequestSlots::Slot* const left = slots_->next_left();
    ASSERT_NE(left, nullptr);
    fuse_in_header header{};
    std::memcpy(&header, RequestSlots::buffer(*left), sizeof(header));
    EXPECT_EQ(header.unique, number);
    EXPECT_EQ(std::string(reinterpret_cast<char*>(RequestSlots::buffer(*left)) + sizeof(header),
                          header.len - sizeof(header)),
              data);
    // Should it have been interrupted, the kernel is asked to say so again.
    const std::optional<Sent> sent = Next();
    ASSERT_TRUE(sent);
    EXPECT_EQ(sent->number, number | 1U);
    EXPECT_EQ(sent->error, -EAGAIN);
  }

  const int memory_;
  std::array<int, 2> connection_{};
  std::unique_ptr<RequestSlots> slots_;
};

TEST_F(RequestSlotsTest, WhatWasReadAndNotAnsweredIsLeft) {
  RequestSlots::Slot& slot = slots_->slot_for_reading();
  Receive(slot, 10, FUSE_WRITE, "data");
  Successor();
  ExpectLeft(10, "data");
  EXPECT_EQ(slots_->next_left(), nullptr);
  // And again, to the one after that.
  Successor();
  ExpectLeft(10, "data");
  Answer(nullptr, 10);
  Successor();
  EXPECT_EQ(slots_->next_left(), nullptr);
}

TEST_F(RequestSlotsTest, WhatWasAnsweredIsNotLeft) {
  RequestSlots::Slot& slot = slots_->slot_for_reading();
  for (const uint64_t number : {10, 12}) {
    Receive(slot, number, FUSE_WRITE, "data");
    Answer(&slot, number, "well");
    EXPECT_EQ(Next()->data, "well");
    slots_->set_aside(slot);
  }
  Successor();
  EXPECT_EQ(slots_->next_left(), nullptr);
  EXPECT_FALSE(Next());
}

TEST_F(RequestSlotsTest, WhatIsSetAsideIsLeftUntilItIsAnswered) {
  RequestSlots::Slot& slot = slots_->slot_for_reading();
  const std::string large(300'000, 'l');
  Receive(slot, 10, FUSE_WRITE, large);
  slots_->set_aside(slot);
  Receive(slot, 12, FUSE_FSYNC);
  slots_->set_aside(slot);
  Receive(slot, 14, FUSE_WRITE, "small");
  slots_->set_aside(slot);
  Answer(&slot, 12);
  EXPECT_EQ(Next()->number, 12U);
  Successor();
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(Next());
  size_t sizes = 0;
  for (RequestSlots::Slot* left = nullptr; (left = slots_->next_left()) != nullptr;) {
    fuse_in_header header{};
    std::memcpy(&header, RequestSlots::buffer(*left), sizeof(header));
    sizes += header.len - sizeof(header);
    Answer(nullptr, header.unique);
  }
  EXPECT_EQ(sizes, large.size() + 5);
  Successor();
  EXPECT_EQ(slots_->next_left(), nullptr);
}

TEST_F(RequestSlotsTest, AnotherThreadMayAnswerBeforeItIsSetAside) {
  RequestSlots::Slot& slot = slots_->slot_for_reading();
  RequestSlots::Slot& other = slots_->slot_for_reading();
  Receive(slot, 10, FUSE_WRITE);
  std::thread([&] { Answer(&other, 10); }).join();
  slots_->set_aside(slot);
  EXPECT_EQ(Next()->number, 10U);
  Successor();
  EXPECT_EQ(slots_->next_left(), nullptr);
}

TEST_F(RequestSlotsTest, WhatHasNoAnswerIsNotKept) {
  RequestSlots::Slot& slot = slots_->slot_for_reading();
  for (const uint32_t operation : {FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_INTERRUPT}) {
    Receive(slot, 10, operation);
    slots_->set_aside(slot);
    Successor();
    EXPECT_EQ(slots_->next_left(), nullptr);
    Receive(slots_->slot_for_reading(), 12, operation);
    Successor();
    EXPECT_EQ(slots_->next_left(), nullptr);
    EXPECT_FALSE(Next());
  }
}

// Dies when the answer is in the slot: the connection is closed, and SIGPIPE kills it.
TEST_F(RequestSlotsTest, WhatWasDoneIsAnsweredAndNotDoneAgain) {
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGPIPE, SIG_DFL);
    std::array<int, 2> ends{};
    if (pipe(ends.data()) != 0) _exit(1);
    close(ends[0]);
    RequestSlots slots(std::make_shared<LiveMemory>(memory_), ends[1]);
    RequestSlots::Slot& slot = slots.slot_for_reading();
    Receive(slot, 10, FUSE_WRITE, "data");
    fuse_out_header header{.len = sizeof(header), .error = -ENOSPC, .unique = 10};
    const std::array<iovec, 1> reply{iovec{&header, sizeof(header)}};
    slots.answer(&slot, reply);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);
  Successor();
  EXPECT_EQ(slots_->next_left(), nullptr);
  const std::optional<Sent> sent = Next();
  ASSERT_TRUE(sent);
  EXPECT_EQ(sent->number, 10U);
  EXPECT_EQ(sent->error, -ENOSPC);
  Successor();
  EXPECT_FALSE(Next());
}

TEST_F(RequestSlotsTest, WhatIsInTwoSlotsIsLeftOnce) {
  // As by a process that died while it set a request aside.
  Receive(slots_->slot_for_reading(), 10, FUSE_WRITE, "data");
  Receive(slots_->slot_for_reading(), 10, FUSE_WRITE, "data");
  Successor();
  ExpectLeft(10, "data");
  EXPECT_EQ(slots_->next_left(), nullptr);
  Answer(nullptr, 10);
  EXPECT_EQ(Next()->number, 10U);
  Successor();
  EXPECT_EQ(slots_->next_left(), nullptr);
}

TEST_F(RequestSlotsTest, WhatIsLeftCanBeRefused) {
  Receive(slots_->slot_for_reading(), 10, FUSE_WRITE, "data");
  Successor();
  EXPECT_EQ(Next()->error, -EAGAIN);
  slots_->refuse_left(EIO);
  EXPECT_EQ(Next()->error, -EIO);
  Successor();
  EXPECT_EQ(slots_->next_left(), nullptr);
}

TEST_F(RequestSlotsTest, DamagedMemoryIsPassedOver) {
  RequestSlots::Slot& slot = slots_->slot_for_reading();
  Receive(slot, 10, FUSE_WRITE);
  const uint32_t length = RequestBuffer::kBytes + 1;
  std::memcpy(RequestSlots::buffer(slot), &length, sizeof(length));
  Successor();
  EXPECT_EQ(slots_->next_left(), nullptr);
}

}  // namespace
}  // namespace cowfs
