#include "fs/parking.h"

#include <spdlog/logger.h>

#include <chrono>
#include <utility>
#include <vector>

#include "store/error.h"

namespace cowfs {
namespace {

constexpr std::chrono::milliseconds kRetryInterval{200};

}  // namespace

Parking::Parking(spdlog::logger& log, TitleOf title_of)
    : log_(log), title_of_(std::move(title_of)), thread_([this] { run(); }) {}

void Parking::finish() {
  if (!thread_.joinable()) return;
  end_all();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

bool Parking::park(uint64_t image, const char* why, Retry retry) {
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    if (ended_ || ended_images_.contains(image)) return false;
    const auto [place, made] = waiting_.try_emplace(image);
    first = made;
    try {
      place->second.push_back(std::move(retry));
    } catch (...) {
      if (made) waiting_.erase(place);
      throw;
    }
  }
  if (!first) return true;
  changed_.notify_all();
  // The request waits by now, whatever comes of the message.
  attempt([&] {
    const std::string title = title_of_(image);
    log_.error(
        "{}: its writes wait for space: {}; they go on once there is some; cowfs umount --force "
        "ends them",
        title, without_subject(why, title));
  });
  return true;
}

void Parking::end_all() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
}

void Parking::end(uint64_t image) {
  const std::lock_guard lock(mutex_);
  ended_images_.insert(image);
}

bool Parking::ended() {
  const std::lock_guard lock(mutex_);
  return ended_;
}

size_t Parking::count() {
  const std::lock_guard lock(mutex_);
  size_t sum = 0;
  for (const auto& [image, queue] : waiting_) sum += queue.size();
  return sum;
}

size_t Parking::count(uint64_t image) {
  const std::lock_guard lock(mutex_);
  const auto found = waiting_.find(image);
  return found == waiting_.end() ? 0 : found->second.size();
}

void Parking::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    changed_.wait_for(lock, kRetryInterval, [this] { return ended_; });
    // By number: others come and go meanwhile.
    uint64_t last = 0;
    for (auto at = waiting_.begin(); at != waiting_.end(); at = waiting_.upper_bound(last)) {
      last = at->first;
      try_image(lock, last, ended_ || ended_images_.contains(last));
    }
  }
}

void Parking::try_image(std::unique_lock<std::mutex>& lock, uint64_t image, bool give_up) {
  while (true) {
    // It stays in its place while it is tried: so the image still counts as one that waits.
    const Retry& retry = waiting_.at(image).front();
    lock.unlock();
    const bool answered = retry(give_up);
    lock.lock();
    if (!answered) return;
    std::deque<Retry>& queue = waiting_.at(image);
    queue.pop_front();
    if (!queue.empty()) continue;
    waiting_.erase(image);
    attempt([&] {
      log_.warn("{}: {}", title_of_(image),
                give_up ? "its writes that waited for space were ended with an error"
                        : "its writes go on: there is space again");
    });
    return;
  }
}

}  // namespace cowfs
