#include "tests/crash/explorer.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <random>
#include <unordered_map>

#include "store/error.h"
#include "tests/crash/cut.h"
#include "tests/crash/opened.h"
#include "tests/crash/run.h"

namespace cowfs::crash {
namespace {

using Clock = std::chrono::steady_clock;

constexpr unsigned kLeftsPerCut = 3;
constexpr unsigned kShrinkCuts = 150;
constexpr std::chrono::seconds kShrinkTime{20};

/// Where to cut: right after a sync began or ended and after a step returned, and anywhere.
std::vector<Position> cut_positions(const Run& run, unsigned count, std::mt19937_64& random) {
  std::vector<Position> positions;
  for (const Operation& operation : run.operations()) {
    if (operation.kind != Operation::Kind::sync) continue;
    positions.push_back(operation.at + 1);
    if (operation.end != kNever) positions.push_back(operation.end + 1);
  }
  positions.push_back(run.end());
  for (const Position end : run.step_ends()) positions.push_back(end + 1);
  std::erase_if(positions, [&](Position at) { return at <= run.start(); });
  std::shuffle(positions.begin(), positions.end(), random);
  if (positions.size() > count * 3 / 4) positions.resize(count * 3 / 4);
  while (positions.size() < count) {
    positions.push_back(run.start() + 1 + random() % (run.end() - run.start()));
  }
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  return positions;
}

std::string describe(const Run& run, CutDisk& disk, const Cut& cut) {
  std::string text;
  for (const Operation& operation : run.operations()) {
    if (operation.kind == Operation::Kind::link) {
      text += "  file " + std::to_string(operation.target) + " is " + operation.name + "\n";
    }
  }
  return text + disk.describe(cut);
}

}  // namespace

Explorer::Explorer(std::string directory) : directory_(std::move(directory)) {
  if (::mkdir(directory_.c_str(), 0700) != 0) throw Error(errno, directory_);
}

Explorer::~Explorer() {
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

std::optional<std::string> Explorer::explore(const Scenario& scenario, unsigned cuts) {
  std::filesystem::remove_all(directory_ + "/run");
  const Run run(scenario, directory_);
  if (run.failure()) return run.failure();

  std::mt19937_64 random(scenario.seed);
  CutDisk disk(run.operations());
  // Equal states are opened once, and held against each cut.
  std::unordered_map<uint64_t, Opened> known;
  for (const Position at : cut_positions(run, cuts, random)) {
    for (unsigned i = 0; i < kLeftsPerCut; ++i) {
      const auto left = i == 0 ? Left::nothing : static_cast<Left>(random() % kLeftKinds);
      const Cut cut{.at = at, .left = left, .seed = random()};
      const Disk state = disk.state(cut);
      const bool may_be_new = at <= run.made();
      const uint64_t hash = state.hash() + (may_be_new ? 1 : 0);
      ++states_;
      auto found = known.find(hash);
      if (found == known.end()) {
        hashes_.insert(hash);
        found = known
                    .emplace(hash, open_state(state, scenario, directory_ + "/state",
                                              run.base_path(), may_be_new))
                    .first;
      }
      const Opened& opened = found->second;
      std::optional<std::string> objection = opened.error;
      if (!objection) objection = run.oracle().objection(at, opened.shown);
      if (objection) return *objection + "\n" + describe(run, disk, cut);
    }
  }
  return std::nullopt;
}

std::pair<Scenario, std::string> Explorer::shrink(const Scenario& scenario,
                                                  const std::string& violation) {
  const auto end = Clock::now() + kShrinkTime;
  std::pair<Scenario, std::string> best{scenario, violation};
  const auto still_fails = [&](const Scenario& smaller) {
    // Threads do not meet in the same way each time.
    for (int i = 0; i < (smaller.has_threads() ? 3 : 1) && Clock::now() < end; ++i) {
      if (const auto found = explore(smaller, kShrinkCuts)) {
        best = {smaller, *found};
        return true;
      }
    }
    return false;
  };
  for (size_t size = scenario.steps.size() / 2; size > 0; size /= 2) {
    for (size_t at = 0; at + size <= best.first.steps.size();) {
      Scenario smaller = best.first;
      const auto first = smaller.steps.begin() + static_cast<std::ptrdiff_t>(at);
      smaller.steps.erase(first, first + static_cast<std::ptrdiff_t>(size));
      if (!still_fails(smaller)) at += size;
    }
  }
  for (size_t i = 0; i < best.first.steps.size(); ++i) {
    for (size_t j = 0; j < best.first.steps[i].during.size();) {
      Scenario smaller = best.first;
      auto& during = smaller.steps[i].during;
      during.erase(during.begin() + static_cast<std::ptrdiff_t>(j));
      if (!still_fails(smaller)) ++j;
    }
    for (size_t thread = 0; thread < best.first.steps[i].threads.size(); ++thread) {
      for (size_t j = 0; j < best.first.steps[i].threads[thread].size();) {
        Scenario smaller = best.first;
        auto& steps = smaller.steps[i].threads[thread];
        steps.erase(steps.begin() + static_cast<std::ptrdiff_t>(j));
        if (!still_fails(smaller)) ++j;
      }
    }
    Scenario smaller = best.first;
    smaller.steps[i].kill_after = 0;
    if (best.first.steps[i].kill_after > 0) still_fails(smaller);
  }
  return best;
}

}  // namespace cowfs::crash
