// The crash explorer: what could a power cut make of a store?
//
// A trace is a small random run (scenario) of the ordinary store code. Everything that it does to
// files, SQLite's part included, is caught at the libc symbols (interpose) and recorded with its
// position (recorder); an oracle is told of each operation on images, when it began and when it
// returned. From the record come the states that a power cut could leave (cut). Each is made on a
// tmpfs, opened with the ordinary code, read to the last byte, compared with what the oracle
// allows, written to, and opened again (opened). A trace that fails is made shorter as long as it
// fails.
//
// States. A cut is a position; what happened before it has happened. Of each file, what had been
// done when its last completed sync began is there for good. Of what came later any subset is
// left: nothing, all, a prefix, each by chance, each piece by chance (sectors of 512 bytes of a
// write, blocks of 4 KiB of a punch), one operation, all but one, one file's, all but one file's.
// Entries of a directory are like the content of a file: for good after a sync of the directory,
// and not after a sync of the file that they name, whatever ext4 does beyond POSIX. A sector that
// is left is as it was after the last operation on it that is left: the page cache has one content,
// so that an earlier write to the same sector comes with a later one. Cuts are made after each
// sync's beginning and end, after each return of an operation, and at random.
//
// Rules. The oracle (I3, I4): a sector shows its value of the time when the last completed flush of
// its image began, or any value whose write began later; not more bytes of it than the image had
// then. Sizes go the same way; resizes and changes of names are done as a whole once they have
// returned, and as a whole or not at all before. Opening needs no repair (I6).
//
// Kills. Some steps end with the process killed somewhere inside: from there on its calls change
// nothing. The store is opened again over what is there, unsynced or not, and must show what the
// oracle allows; what it shows then, a flush must make durable like all else.
//
// Faults. With --faults some call fails, SQLite's too, or all from it on, or a half is read or
// written (faults). A step may end with an error then. The disk is put in order, and the store,
// alive as it is, must show what the oracle allows, go on, and survive power cuts as ever: a flush
// that returned success over a sync that failed is seen at the next cut.
//
// Threads. Writes inside the syncs of a flush are made by the flushing thread itself, so that the
// trace is the same each time. A quarter of the traces has true threads, on sectors of their own,
// and is not.
//
// Left out: the order that journals impose among directory entries and sizes (what is explored is
// weaker than any file system), pieces of less than a sector, the content of SQLite's shared memory
// (it is made anew by who opens the database first), several servers, and what the base does.
//
// The explorer proves itself in sabotage_test.cc: it has to find deliberate faults.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <random>
#include <thread>

#include "tests/crash/campaign.h"

int main(int argc, char** argv) {
  using cowfs::crash::Report;
  cowfs::crash::Options options{.seed = std::random_device()(),
                                .jobs = std::max(1U, std::thread::hardware_concurrency())};
  double minutes = 0;
  uint64_t seed_of_trace = 0;

  CLI::App app{
      "Looks for what a power cut could make of a store that I1 to I6 do not allow. Runs random\n"
      "traces until a limit is reached, Ctrl-C is pressed, or something is found. TMPDIR names\n"
      "another place than /dev/shm to work in."};
  app.add_option("--seed", options.seed, "of the traces; one is chosen and printed by default");
  app.add_option("--minutes", minutes, "how long; no limit by default");
  app.add_option("--traces", options.traces, "how many; no limit by default");
  app.add_option("--jobs", options.jobs, "processes; by default one for each CPU")
      ->check(CLI::Range(1, 1024));
  app.add_flag("--faults", options.faults,
               "calls fail in the traces: EIO, ENOSPC, EMFILE, ENOMEM, half transfers");
  auto* replay = app.add_option("--replay", seed_of_trace, "only the trace with this seed");
  app.footer(
      "Example: explore --seed 7 --minutes 60\nExit status: 0 nothing found, 1 a violation, 2 "
      "usage.");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  options.seconds = minutes * 60;

  const Report report = replay->count() > 0 ? cowfs::crash::replay(seed_of_trace, options.faults)
                                            : cowfs::crash::explore(options);
  std::cout << report.text();
  return report.violations.empty() ? 0 : 1;
}
