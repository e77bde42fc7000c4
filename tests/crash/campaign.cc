#include "tests/crash/campaign.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <new>
#include <sstream>
#include <unordered_set>
#include <vector>

#include "store/error.h"
#include "tests/crash/explorer.h"

namespace cowfs::crash {
namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned kCutsPerTrace = 40;

/// What the processes share.
struct Shared {
  std::atomic<uint64_t> next_trace = 0;
  std::atomic<bool> stop = false;
};

std::atomic<bool> interrupted = false;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

uint64_t trace_seed(uint64_t seed, uint64_t index) {
  uint64_t mixed = (seed ^ (index << 20U)) + (index + 1) * 0x9e3779b97f4a7c15;
  mixed = (mixed ^ (mixed >> 30U)) * 0xbf58476d1ce4e5b9;
  return (mixed ^ (mixed >> 27U)) >> 16U;
}

std::string describe(const Scenario& scenario, const std::string& violation) {
  return "trace " + std::to_string(scenario.seed) + " (explore " +
         (scenario.fault ? "--faults " : "") + "--replay " + std::to_string(scenario.seed) +
         "), the shortest found:\n  " + scenario.text() + violation + "\n";
}

/// A directory in memory: thousands of syncs take their time on a disk.
std::string make_directory() {
  const char* chosen = std::getenv("TMPDIR");
  std::string path = std::string(chosen != nullptr ? chosen : "/dev/shm") + "/cowfs-crash-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) throw Error(errno, path);
  return std::filesystem::canonical(path);
}

/// One process's work, and what came of it, in files below `directory`.
class Job {
 public:
  Job(std::string directory, Shared& shared) : directory_(std::move(directory)), shared_(shared) {}

  void start(const Options& options) {
    pid_ = ::fork();
    if (pid_ < 0) throw Error(errno, "fork");
    if (pid_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::signal(SIGINT, SIG_IGN);  // the parent tells when to stop
    int status = 1;
    try {
      work(options);
      status = 0;
    } catch (const std::exception& error) {
      note_violation(std::string("the explorer itself: ") + error.what() + "\n");
    }
    ::_exit(status);
  }

  void finish(Report& report, std::unordered_set<uint64_t>& hashes) {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
      if (interrupted) shared_.stop = true;
    }
    std::ifstream counts(directory_ + ".counts");
    uint64_t traces = 0;
    uint64_t states = 0;
    counts >> traces >> states;
    report.traces += traces;
    report.states += states;
    for (uint64_t hash = 0; counts >> hash;) hashes.insert(hash);
    std::ostringstream violations;
    violations << std::ifstream(directory_ + ".violations").rdbuf();
    report.violations += violations.str();
    if (WIFSIGNALED(status)) {
      uint64_t seed = 0;
      std::ifstream(directory_ + ".trace") >> seed;
      report.violations += "trace " + std::to_string(seed) + " ended with signal " +
                           std::to_string(WTERMSIG(status)) + "\n";
    }
  }

 private:
  void work(const Options& options) {
    const auto start = Clock::now();
    Explorer explorer(directory_);
    uint64_t traces = 0;
    while (!shared_.stop && (options.seconds == 0 || seconds_since(start) < options.seconds)) {
      const uint64_t index = shared_.next_trace++;
      if (options.traces > 0 && index >= options.traces) break;
      const Scenario scenario = make_scenario(trace_seed(options.seed, index), options.faults);
      std::ofstream(directory_ + ".trace") << scenario.seed;
      ++traces;
      if (const auto violation = explorer.explore(scenario, kCutsPerTrace)) {
        shared_.stop = true;
        const auto [shortest, why] = explorer.shrink(scenario, *violation);
        note_violation(describe(shortest, why));
      }
    }
    std::ofstream counts(directory_ + ".counts");
    counts << traces << " " << explorer.states();
    for (const uint64_t hash : explorer.hashes()) counts << " " << hash;
  }

  void note_violation(const std::string& text) const {
    std::ofstream(directory_ + ".violations") << text;
  }

  const std::string directory_;
  Shared& shared_;
  pid_t pid_ = -1;
};

/// SIGINT and SIGTERM end an exploration with its report.
class InterruptGuard {
 public:
  InterruptGuard() {
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = true; };
    ::sigaction(SIGINT, &action, &old_interrupt_);
    ::sigaction(SIGTERM, &action, &old_terminate_);
  }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  ~InterruptGuard() {
    ::sigaction(SIGINT, &old_interrupt_, nullptr);
    ::sigaction(SIGTERM, &old_terminate_, nullptr);
  }

 private:
  struct sigaction old_interrupt_ {};
  struct sigaction old_terminate_ {};
};

}  // namespace

Report explore(const Options& options) {
  const auto start = Clock::now();
  const InterruptGuard guard;
  const std::string directory = make_directory();
  void* memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw Error(errno, "mmap");
  Shared& shared = *new (memory) Shared;

  std::vector<Job> jobs;
  for (unsigned i = 0; i < options.jobs; ++i) {
    jobs.emplace_back(directory + "/" + std::to_string(i), shared);
  }
  for (Job& job : jobs) job.start(options);
  Report report{.seed = options.seed};
  std::unordered_set<uint64_t> hashes;
  for (Job& job : jobs) job.finish(report, hashes);
  report.distinct = hashes.size();
  report.seconds = seconds_since(start);
  ::munmap(memory, sizeof(Shared));
  std::filesystem::remove_all(directory);
  return report;
}

Report replay(uint64_t seed, bool faults) {
  const auto start = Clock::now();
  const std::string directory = make_directory();
  Report report{.seed = seed, .traces = 1};
  {
    Explorer explorer(directory + "/replay");
    const Scenario scenario = make_scenario(seed, faults);
    if (const auto violation = explorer.explore(scenario, kCutsPerTrace)) {
      report.violations = describe(scenario, *violation);
      const auto [shortest, why] = explorer.shrink(scenario, *violation);
      report.violations += describe(shortest, why);
    }
    report.states = explorer.states();
    report.distinct = explorer.hashes().size();
  }
  std::filesystem::remove_all(directory);
  report.seconds = seconds_since(start);
  return report;
}

std::string Report::text() const {
  std::ostringstream text;
  text << "seed " << seed << ": " << traces << " traces, " << states << " states built, "
       << distinct << " of them distinct, in " << std::fixed;
  text.precision(1);
  text << seconds << " s; " << (violations.empty() ? "no violation" : "VIOLATIONS:") << "\n"
       << violations;
  return text.str();
}

}  // namespace cowfs::crash
