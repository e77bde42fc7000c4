#pragma once

#include <functional>

namespace cowfs {

/// Remembers which descriptors above standard error this program was started with. To be called
/// first.
void note_inherited_descriptors();
/// Closes those of them that are still open: whoever lives on must not hold what is its caller's, a
/// lock or the end of a pipe say, or a file in its own mount, which nobody could close any more.
/// run_in_background does it in the child.
void close_inherited_descriptors();

/// What becomes of the child if its parent is gone before it is ready: it sends itself SIGTERM, or
/// goes on, and is out of reach of the parent's terminal from the beginning.
enum class IfAbandoned { ends, goes_on };

/// Runs `serve` in a child process and returns in the parent when it calls `ready`. What it throws
/// before that is thrown in the parent, as an Error with the same message, and so is its end.
///
/// Until `ready` the child belongs to the terminal, so that Ctrl-C ends it too. Then it leaves:
/// a session of its own, working directory /, standard streams /dev/null. Must be called while
/// there is one thread.
///
/// Returns the exit status for the process that it returns in: the parent, or the child when
/// `serve` has returned its own.
int run_in_background(const std::function<int(const std::function<void()>& ready)>& serve,
                      IfAbandoned if_abandoned = IfAbandoned::ends);

}  // namespace cowfs
