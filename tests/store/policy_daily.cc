// Policy `daily`: the example of cowfs-policy(7)
//
// Slot d * 2^16 + n is the n-th chunk of the file of day d; slots are used once. The catalog, maps,
// commits, crashes, checks and servers that are killed are the business of SlotPolicy.

#include "tests/store/policy_daily.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>

#include "store/error.h"
#include "store/file.h"
#include "store/slot_policy.h"

namespace cowfs::test {

std::atomic<uint64_t> today = 20'000;

namespace {

constexpr uint64_t kSlotsADay = 1 << 16;

class DailyFiles final : public SlotSpace {
 public:
  explicit DailyFiles(const PolicyContext& context)
      : chunk_(context.chunk),
        directory_(std::filesystem::path(context.directory).parent_path()),
        hook_(context.hook) {
    context.catalog.load_used_slots([this](SlotRun run) { take(run); });
  }

  std::optional<SlotRun> allocate(uint64_t want, std::optional<uint64_t>, SlotStream&) override {
    const std::lock_guard lock(mutex_);
    const uint64_t day = today;
    const uint64_t used = day_of(day).end;
    const SlotRun run{day * kSlotsADay + used, std::min(want, kSlotsADay - used)};
    if (run.count == 0) return std::nullopt;
    take(run);
    return run;
  }

  bool claim(SlotRun run) override {
    const std::lock_guard lock(mutex_);
    take(run);
    return true;
  }

  void give_back(std::span<const SlotRun> runs) override {
    const std::lock_guard lock(mutex_);
    for (const SlotRun& run : runs) {
      const uint64_t number = run.first / kSlotsADay;
      Day& day = days_.at(number);
      day.in_use -= run.count;
      // The file itself stays open: its number is not used again while the store is open.
      if (day.in_use > 0 || number == today) continue;
      attempt([&] { remove_file(day.file->path(), hook_); });
    }
  }

  bool has(uint64_t slot) override {
    const std::lock_guard lock(mutex_);
    return days_.contains(slot / kSlotsADay);
  }

  Place at(uint64_t slot) override {
    const std::lock_guard lock(mutex_);
    return {days_.at(slot / kSlotsADay).file.get(), chunk_.offset_of(slot % kSlotsADay)};
  }

  bool shows_holes() override { return true; }

  void sync() override {
    const std::lock_guard lock(mutex_);
    try {
      for (const auto& [number, day] : days_) day.file->sync();
      // New files have their names there.
      File(directory_, O_RDONLY | O_DIRECTORY, 0, hook_).sync();
    } catch (const Error&) {
      ++failures_;
      throw;
    }
  }

  uint64_t failures() override { return failures_; }

  void drop_cached() override {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, day] : days_) day.file->drop_cached();
  }

  std::string title() override { return "daily files in " + directory_; }

 private:
  struct Day {
    std::unique_ptr<File> file;
    uint64_t end = 0;  // slots from there on were never given away
    uint64_t in_use = 0;
  };

  Day& day_of(uint64_t number) {
    Day& day = days_[number];
    const std::string path = directory_ + "/daily-" + std::to_string(number);
    if (!day.file) day.file = std::make_unique<File>(path, O_RDWR | O_CREAT, 0600, hook_);
    return day;
  }

  void take(SlotRun run) {
    Day& day = day_of(run.first / kSlotsADay);
    day.end = std::max(day.end, run.first % kSlotsADay + run.count);
    day.in_use += run.count;
  }

  const ChunkSize chunk_;
  const std::string directory_;
  const FaultHook* const hook_;
  std::atomic<uint64_t> failures_ = 0;
  std::mutex mutex_;  // guards what follows
  std::map<uint64_t, Day> days_;
};

struct HasFiles {
  DailyFiles files;
};

class DailyPolicy final : HasFiles, public SlotPolicy {
 public:
  explicit DailyPolicy(const PolicyContext& context)
      : HasFiles{.files = DailyFiles(context)}, SlotPolicy(context, files) {}
};

}  // namespace

const Policy kDailyPolicy{.name = "daily",
                          .default_chunk_size = 64 << 10,
                          .map_bits = SlotMap::kBits,
                          .file_suffix = "",
                          .map_in_file = false,
                          .has_pool = false,
                          .open = [](const PolicyContext& context) -> std::unique_ptr<StorePolicy> {
                            return std::make_unique<DailyPolicy>(context);
                          }};

}  // namespace cowfs::test
