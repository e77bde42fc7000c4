#pragma once

#include <functional>
#include <list>

namespace cowfs::e2e {

// Something that has to be undone: runs its function when it is destroyed, or when the test program
// is told to end (SIGTERM, SIGINT, SIGHUP), newest first, before the program exits.
//
// The function may be run a second time while the first run is still under way (a signal that
// arrives during clean-up), so it must hold what it needs by value and bear being repeated. It must
// not throw.
class Undo {
 public:
  Undo() = default;
  explicit Undo(std::function<void()> undo);
  Undo(Undo&& other) noexcept;
  Undo& operator=(Undo&& other) noexcept;
  ~Undo();

  // Undoes now. Does nothing the second time.
  void Run();
  // There is nothing to undo any more.
  void Cancel();

 private:
  std::list<std::function<void()>>::iterator entry_;
  bool armed_ = false;
};

}  // namespace cowfs::e2e
