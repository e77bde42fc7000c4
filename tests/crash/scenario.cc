#include "tests/crash/scenario.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <random>

#include "store/policy.h"

namespace cowfs::crash {
namespace {

class Maker {
 public:
  explicit Maker(uint64_t seed) : random_(seed) {
    scenario_.seed = seed;
    // Each policy with all that the others have to go through.
    constexpr uint64_t kMix = 0x9e3779b97f4a7c15;
    scenario_.policy = policies()[(seed * kMix >> 32U) % policies().size()].name;
  }

  Scenario make() {
    static constexpr std::array<uint32_t, 6> kChunks{4096, 4096, 4096, 4096, 8192, 16384};
    scenario_.chunk_size = kChunks.at(below(kChunks.size()));
    scenario_.base_size = (32U << 10U) + below(below(4) == 0 ? 192U << 10U : 48U << 10U);
    if (below(4) == 0) scenario_.base_size &= ~uint64_t{4095};
    most_ = scenario_.base_size + (32U << 10U);
    scenario_.with_making = below(8) == 0;
    scenario_.reflinks = below(3) == 0;
    const bool threads = below(4) == 0;

    create("a");
    if (below(3) > 0) create("b");
    const size_t count = 3 + below(14);
    for (size_t i = 0; i < count; ++i) {
      if (threads && below(4) == 0) {
        together();
      } else if (below(12) == 0) {
        give_back();
      } else {
        add(any());
      }
    }
    return std::move(scenario_);
  }

 private:
  uint64_t below(uint64_t limit) { return limit == 0 ? 0 : random_() % limit; }
  void add(Step step) { scenario_.steps.push_back(std::move(step)); }

  std::string name() {
    // The first one most often: things are to happen to it one after the other.
    static constexpr std::array<const char*, 8> kNames{"a", "a", "a", "a", "b", "b", "c", "d"};
    return kNames.at(below(kNames.size()));
  }

  void create(const std::string& name) {
    Step step{.kind = Step::Kind::create, .image = name};
    step.flag = below(5) == 0;
    if (below(4) == 0) step.length = 1 + below(most_);
    add(step);
  }

  /// Often on a border of chunks, or near one, or near the base's end.
  uint64_t place() {
    const uint64_t chunk = scenario_.chunk_size;
    switch (below(5)) {
      case 0:
      case 1:
        return below(most_ / chunk) * chunk;
      case 2:
        return std::max<uint64_t>(below(most_ / chunk) * chunk + chunk + below(1200), 600) - 600;
      case 3:
        return scenario_.base_size - std::min(scenario_.base_size, below(2 * chunk));
      default:
        return below(most_);
    }
  }

  uint64_t extent() {
    const uint64_t chunk = scenario_.chunk_size;
    switch (below(4)) {
      case 0:
      case 1:
        return (1 + below(4)) * chunk;
      case 2:
        return 1 + below(chunk);
      default:
        return 1 + below(4 * chunk);
    }
  }

  Step write(const std::string& image) {
    Step step{.kind = Step::Kind::write, .image = image, .offset = place(), .length = extent()};
    const uint64_t dice = below(10);
    if (dice == 0) step.content = Step::Content::zeros;
    if (dice == 1 || dice == 2) step.content = Step::Content::base;
    return step;
  }

  Step make_zero(const std::string& image) {
    return {.kind = Step::Kind::make_zero, .image = image, .offset = place(), .length = extent()};
  }

  Step copy() {
    Step step{.kind = Step::Kind::copy, .image = name(), .other = name()};
    step.offset = place();
    step.other_offset = below(3) == 0 ? place() : step.offset;
    step.length = below(4) == 0 ? most_ : extent();
    return step;
  }

  Step flush() {
    Step step{.kind = below(5) == 0 ? Step::Kind::flush_all : Step::Kind::flush, .image = name()};
    while (below(3) == 0 && step.during.size() < 3) {
      step.during.push_back(below(3) == 0 ? make_zero(step.image) : write(step.image));
    }
    return step;
  }

  Step any() {
    Step step = choose();
    if (below(25) == 0) step.kill_after = static_cast<unsigned>(1 + below(12));
    return step;
  }

  Step choose() {
    const std::string image = name();
    const uint64_t dice = below(100);
    if (dice < 32) return write(image);
    if (dice < 42) return make_zero(image);
    if (dice < 58) return flush();
    if (dice < 68) return copy();
    if (dice < 75) {
      return {.kind = Step::Kind::resize,
              .image = image,
              .length = below(2) == 0 ? place() : below(most_)};
    }
    if (dice < 78) return {.kind = Step::Kind::extend, .image = image, .length = place()};
    if (dice < 81) {
      return {.kind = Step::Kind::reserve, .image = image, .offset = place(), .length = extent()};
    }
    if (dice < 85) {
      Step step{.kind = Step::Kind::create, .image = image};
      step.flag = below(3) == 0;
      if (below(3) == 0) step.length = 1 + below(most_);
      return step;
    }
    if (dice < 88) return {.kind = Step::Kind::remove, .image = image, .flag = below(2) == 0};
    if (dice < 91) return {.kind = Step::Kind::rename, .image = image, .other = name()};
    if (dice < 92) return {.kind = Step::Kind::exchange, .image = image, .other = name()};
    if (dice < 95) return {.kind = Step::Kind::release, .image = image};
    if (dice < 98) return {.kind = Step::Kind::checkpoint};
    return {.kind = Step::Kind::reopen};
  }

  // What an image has for its own, and durable, comes to be the base's again: the one change of a
  // map after which a hole would show.
  void give_back() {
    Step step{.kind = Step::Kind::write, .image = "a"};
    const uint64_t chunk = scenario_.chunk_size;
    step.offset = below(scenario_.base_size / chunk) * chunk;
    step.length = (1 + below(3)) * chunk;
    add(step);
    add({.kind = Step::Kind::flush, .image = step.image});
    step.kind = Step::Kind::copy;
    step.other = "b";
    step.other_offset = step.offset;
    add(step);
    add(flush());
  }

  // Each thread has sectors of its own, several of them in one chunk.
  void together() {
    const size_t count = 2 + below(2);
    const std::string image = name();
    Step step{.kind = Step::Kind::together, .image = image};
    step.threads.resize(count);
    uint64_t at = below(scenario_.base_size / 1024) * 512;
    for (size_t i = 0; i < 12; ++i) {
      std::vector<Step>& mine = step.threads[i % count];
      const uint64_t length = (1 + below(below(4) == 0 ? 40 : 6)) * 512;
      const uint64_t head = below(2) == 0 ? 0 : below(length);
      mine.push_back({.kind = below(4) == 0 ? Step::Kind::make_zero : Step::Kind::write,
                      .image = image,
                      .offset = at + head,
                      .length = length - head});
      if (below(4) == 0) mine.push_back({.kind = Step::Kind::flush, .image = image});
      at += length;
    }
    add(step);
  }

  std::mt19937_64 random_;
  Scenario scenario_;
  uint64_t most_ = 0;
};

}  // namespace

std::string Step::text() const {
  static constexpr std::array<const char*, 16> kTexts{
      "create",  "remove", "rename", "exchange",  "write",   "make_zero",  "extend", "resize",
      "reserve", "copy",   "flush",  "flush_all", "release", "checkpoint", "reopen", "together"};
  std::string text = kTexts.at(static_cast<size_t>(kind));
  if (!image.empty()) text += " " + image;
  if (kind == Kind::create && flag) text += " empty";
  if (kind == Kind::remove && flag) text += " in use";
  if (!other.empty()) text += (kind == Kind::copy ? " from " : " to ") + other;
  if (kind == Kind::copy) text += " " + std::to_string(other_offset) + " to";
  const bool has_offset =
      kind == Kind::write || kind == Kind::make_zero || kind == Kind::reserve || kind == Kind::copy;
  if (has_offset) text += " " + std::to_string(offset) + "+";
  if (has_offset || kind == Kind::extend || kind == Kind::resize || length > 0) {
    text += (has_offset ? "" : " ") + std::to_string(length);
  }
  if (content == Content::zeros) text += " of zeros";
  if (content == Content::base) text += " of the base";
  if (kill_after > 0) text += ", killed after " + std::to_string(kill_after) + " changes";
  for (const Step& step : during) text += "\n      in its sync: " + step.text();
  for (size_t i = 0; i < threads.size(); ++i) {
    for (const Step& step : threads[i]) {
      text += "\n      thread " + std::to_string(i) + ": " + step.text();
    }
  }
  return text;
}

std::string Scenario::text() const {
  std::string text = "base of " + std::to_string(base_size) + " bytes, chunks of " +
                     std::to_string(chunk_size) + ", policy " + policy +
                     (with_making ? ", store made in the run" : "") +
                     (reflinks ? ", reflinks" : "") + "\n";
  if (fault) text += "    " + fault->text() + "\n";
  for (const Step& step : steps) text += "    " + step.text() + "\n";
  return text;
}

bool Scenario::has_threads() const {
  return std::any_of(steps.begin(), steps.end(),
                     [](const Step& step) { return step.kind == Step::Kind::together; });
}

Scenario make_scenario(uint64_t seed, bool with_fault) {
  Scenario scenario = Maker(seed).make();
  if (!with_fault) return scenario;
  std::mt19937_64 random(seed + 1);
  constexpr std::array<int, 8> codes{EIO, EIO, EIO, EIO, ENOSPC, ENOSPC, EMFILE, ENOMEM};
  Fault& fault = scenario.fault.emplace();
  fault.code = random() % 4 == 0 ? 0 : codes[random() % codes.size()];
  // Half transfers may go on for ever: the rest of each has to be asked for.
  fault.lasting = random() % (fault.code == 0 ? 2 : 4) == 0;
  // A failed sync is what there is most to do wrong about.
  fault.syncs = fault.code == EIO && random() % 2 == 0;
  // Of few kinds there are few calls.
  const uint64_t most = fault.syncs ? 20 : fault.code == EIO ? 400 : 60;
  fault.call = 1 + random() % (1 + random() % most);
  scenario.with_making = false;
  for (Step& step : scenario.steps) step.kill_after = 0;
  return scenario;
}

}  // namespace cowfs::crash
