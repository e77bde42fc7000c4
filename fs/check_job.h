#pragma once

#include <spdlog/fwd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "store/store.h"

namespace cowfs {

/// The check of a mounted store: a job that its server does in a thread of its own while it serves
/// (one at a time), and that a command asks about until it is done. A job that nobody has asked
/// about for a minute is given up: its command is gone. Thread-safe.
///
/// Start: {"ask": "check", "what": "store" | "record_base" | "compare_base", "repair": false};
/// answer {"id": 1}. EBUSY while there is another.
///
/// Then: {"ask": "check_progress", "id": 1, "from": 0}; answer {"state": "running" | "done" |
/// "failed", "done": bytes, "total": bytes, "findings": [...], "next": 5}: the findings from number
/// `from` on that fit, and the number to ask for next. Once all are told: of a check that is done
/// "result", of a comparison "same", of one that failed "code" and "error". ENOENT if there is no
/// such job (any more).
class CheckJob {
 public:
  CheckJob(Store& store, std::shared_ptr<spdlog::logger> log);
  CheckJob(const CheckJob&) = delete;
  CheckJob& operator=(const CheckJob&) = delete;
  /// Ends the job.
  ~CheckJob();

  [[nodiscard]] nlohmann::json start(const nlohmann::json& request);
  [[nodiscard]] nlohmann::json progress(const nlohmann::json& request);

 private:
  struct State {
    uint64_t id = 0;
    bool running = false;
    uint64_t done = 0;
    uint64_t total = 0;
    std::vector<nlohmann::json> findings;
    nlohmann::json end;  ///< what is told last
    std::chrono::steady_clock::time_point asked;
  };

  void run(const std::string& what, bool repair);
  void receive(const Finding& finding);
  [[nodiscard]] bool cancelled();

  Store& store_;
  const std::shared_ptr<spdlog::logger> log_;
  std::atomic<bool> stopping_ = false;
  Synchronized<State> state_;
  std::mutex start_mutex_;  // before state_; guards thread_
  std::thread thread_;
};

/// A finding as the commands print it and as it comes from a server.
nlohmann::json to_json(const Finding& finding);
Finding finding_from_json(const nlohmann::json& json);
nlohmann::json to_json(const CheckResult& result);
CheckResult check_result_from_json(const nlohmann::json& json);

}  // namespace cowfs
