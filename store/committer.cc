#include "store/committer.h"

#include <spdlog/logger.h>

#include <chrono>
#include <utility>

#include "store/db.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr std::chrono::seconds kInterval{2};
/// Rounds between two checkpoints of the write-ahead log.
constexpr unsigned kCheckpointRounds = 15;

}  // namespace

Committer::Committer(Catalog& catalog, Reserve& reserve, ListImages list, spdlog::logger& log)
    : catalog_(catalog), reserve_(reserve), list_(std::move(list)), log_(log), thread_([this] {
        run();
      }) {
  catalog_.when_log_is_long([this] {
    {
      const std::lock_guard lock(mutex_);
      checkpoint_due_ = true;
    }
    wake_.notify_all();
  });
}

Committer::~Committer() {
  catalog_.when_log_is_long({});
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Committer::run() {
  unsigned round = 0;
  bool in_place = true;
  std::unique_lock lock(mutex_);
  while (true) {
    const bool woken =
        wake_.wait_for(lock, kInterval, [this] { return stopping_ || checkpoint_due_; });
    if (stopping_) return;
    checkpoint_due_ = false;
    lock.unlock();
    if (!woken) {
      attempt([this] { commit_all(); });
      attempt([this] { reserve_.renew(); });
      ++round;
    }
    // A catalog that was replaced is told of at once, and then each time.
    const bool was_in_place = std::exchange(in_place, catalog_.is_in_place());
    if (woken || round % kCheckpointRounds == 0 || (was_in_place && !in_place)) {
      attempt([this] { checkpoint(); });
    }
    lock.lock();
  }
}

void Committer::checkpoint() {
  try {
    catalog_.checkpoint();
  } catch (const Error& error) {
    log_.warn("checkpoint: {}", error.what());
  }
}

void Committer::commit_all() {
  for (const std::shared_ptr<Image>& image : list_()) {
    try {
      if (image->in_use_or_open()) {
        {
          const Image::Use use = image->use();
          if (image->dirty()) image->flush_all();
        }
        image->retire_if_idle();
      } else if (image->dirty()) {
        const Image::Use use = image->use();
        image->flush_all();
      }
    } catch (const std::exception&) {
      // Logged where it happened; an unlinked image may have gone meanwhile.
    }
  }
}

}  // namespace cowfs
