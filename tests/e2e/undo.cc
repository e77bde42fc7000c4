#include "tests/e2e/undo.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <mutex>
#include <thread>
#include <utility>

namespace cowfs::e2e {
namespace {

// What is still to be undone. Made at the first use, which is in the main thread: from then on the
// ending signals are blocked in every thread and waited for in one.
class Registry {
 public:
  static Registry& Instance() {
    static Registry* const registry = new Registry;  // never destroyed: the signal thread uses it
    return *registry;
  }

  std::list<std::function<void()>>::iterator Add(std::function<void()> undo) {
    const std::lock_guard lock(mutex_);
    return entries_.insert(entries_.end(), std::move(undo));
  }

  void Remove(std::list<std::function<void()>>::iterator entry) {
    const std::lock_guard lock(mutex_);
    entries_.erase(entry);
  }

 private:
  Registry() {
    sigset_t ending;
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGINT);
    sigaddset(&ending, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &ending, nullptr);
    std::thread([this, ending] {
      int signal = 0;
      sigwait(&ending, &signal);
      const std::lock_guard lock(mutex_);
      for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
        (*entry)();
      }
      _exit(128 + signal);
    }).detach();
  }

  std::mutex mutex_;
  std::list<std::function<void()>> entries_;
};

}  // namespace

Undo::Undo(std::function<void()> undo)
    : entry_(Registry::Instance().Add(std::move(undo))), armed_(true) {}

Undo::Undo(Undo&& other) noexcept
    : entry_(other.entry_), armed_(std::exchange(other.armed_, false)) {}

Undo& Undo::operator=(Undo&& other) noexcept {
  if (this != &other) {
    Run();
    entry_ = other.entry_;
    armed_ = std::exchange(other.armed_, false);
  }
  return *this;
}

Undo::~Undo() { Run(); }

void Undo::Run() {
  if (!std::exchange(armed_, false)) {
    return;
  }
  (*entry_)();  // before it is taken off the list: a signal half way must find it there
  Registry::Instance().Remove(entry_);
}

void Undo::Cancel() {
  if (std::exchange(armed_, false)) {
    Registry::Instance().Remove(entry_);
  }
}

}  // namespace cowfs::e2e
