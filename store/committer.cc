#include "store/committer.h"

#include <chrono>
#include <optional>

#include "store/db.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr std::chrono::seconds kInterval{2};
/// Rounds between two checkpoints of the write-ahead log.
constexpr unsigned kCheckpointRounds = 15;

}  // namespace

Committer::Committer(std::string catalog_path, ListImages list, spdlog::logger& log)
    : catalog_path_(std::move(catalog_path)),
      list_(std::move(list)),
      log_(log),
      thread_([this] { run(); }) {}

Committer::~Committer() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  thread_.join();
}

void Committer::run() {
  // A connection of its own: a checkpoint syncs, and commits go on meanwhile.
  std::optional<Database> checkpointer;
  unsigned round = 0;
  std::unique_lock lock(mutex_);
  while (!stop_.wait_for(lock, kInterval, [this] { return stopping_; })) {
    lock.unlock();
    commit_all();
    if (++round % kCheckpointRounds == 0) {
      try {
        if (!checkpointer) checkpointer.emplace(catalog_path_, Database::Mode::read_write);
        checkpointer->checkpoint();
      } catch (const Error& error) {
        log_.warn("checkpoint: {}", error.what());
      }
    }
    lock.lock();
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
    } catch (const Error&) {
      // Logged where it happened; an unlinked image may have gone meanwhile.
    }
  }
}

}  // namespace cowfs
