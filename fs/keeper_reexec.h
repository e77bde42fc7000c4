#pragma once

#include <signal.h>

#include <string>

#include "fs/keeper_legacy.h"
#include "fs/program.h"

namespace cowfs {

/// The name and version of what a keeper hands down to the program that it becomes.
constexpr const char* kHandDown = "cowfs keeper 1";

/// Becomes `next`, as `cowfs keep FD`; `legacy` has a process. `next` is tried first, in a child
/// with `signals` blocked, for 5 seconds at most. Returns only by an Error that says why not;
/// nothing has changed then.
[[noreturn]] void become_program(const Program& next, const KeeperLegacy& legacy,
                                 const sigset_t& signals);

/// What the program that was before has handed down in `memory`, which is among what is spent.
/// Throws Error, EPROTONOSUPPORT with name and version if that is in a form that is not known here.
KeeperLegacy inherit_keeper(int memory);

/// The name and version of the form of what is in `memory`, if this program knows it; Error as
/// above if not.
std::string known_form(int memory);

/// Becomes the program that was before again, as `cowfs keep --back WHY FD`; for one that cannot go
/// on with what it got. Returns only if that is not possible.
void go_back(int memory, const std::string& why);

/// Whether the keeper's descriptors are closed when it becomes another program.
void set_close_on_exec(const KeeperLegacy& legacy, bool close);

}  // namespace cowfs
