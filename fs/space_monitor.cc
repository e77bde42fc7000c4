#include "fs/space_monitor.h"

#include <spdlog/logger.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "store/error.h"

namespace cowfs {
namespace {

constexpr std::chrono::seconds kLookInterval{2};

}  // namespace

SpaceMonitor::SpaceMonitor(Config config, std::atomic<uint32_t>& told, spdlog::logger& log)
    : config_(std::move(config)),
      told_(told),
      log_(log),
      news_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd"),
      marks_(config_.marks, told),
      thread_([this] { run(); }) {}

SpaceMonitor::~SpaceMonitor() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  thread_.join();
}

std::optional<unsigned> SpaceMonitor::reached() {
  const std::lock_guard lock(mutex_);
  return marks_.reached();
}

void SpaceMonitor::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    lock.unlock();
    attempt([this] { look(); });
    lock.lock();
    stop_.wait_for(lock, kLookInterval, [this] { return stopping_; });
  }
}

void SpaceMonitor::look() {
  unsigned used = 0;
  try {
    used = used_percent(config_.space());
  } catch (const Error& error) {
    log_.debug("space: {}", error.what());
    return;
  }
  std::vector<unsigned> news;
  {
    const std::lock_guard lock(mutex_);
    news = marks_.update(used);
    told_ = marks_.reached().value_or(0);
  }
  for (const unsigned mark : news) {
    log_.warn("space: {}: the {} is {} % full (watermark {} %)", config_.store, config_.what, used,
              mark);
    {
      const std::lock_guard lock(mutex_);
      news_.push_back({.mark = mark, .used = used});
    }
    const uint64_t one = 1;
    static_cast<void>(!::write(news_fd_.fd(), &one, sizeof(one)));
  }
}

std::vector<WatermarkNews> SpaceMonitor::take_news() {
  uint64_t count = 0;
  static_cast<void>(!::read(news_fd_.fd(), &count, sizeof(count)));
  const std::lock_guard lock(mutex_);
  return std::exchange(news_, {});
}

}  // namespace cowfs
