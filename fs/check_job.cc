#include "fs/check_job.h"

#include <spdlog/logger.h>

#include <cerrno>
#include <utility>

#include "fs/control.h"
#include "store/error.h"

namespace cowfs {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPatience{60};
/// More are counted and not kept.
constexpr size_t kMostFindings = 100'000;
/// Of a message, for findings; the rest is for what goes with them.
constexpr size_t kRoom = sizeof(ControlMessage) - 1024;

std::string shortened(std::string text, size_t most) {
  if (text.size() <= most) return text;
  return text.substr(0, most) + "...";
}

size_t length_of(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).size();
}

}  // namespace

CheckJob::CheckJob(Store& store, std::shared_ptr<spdlog::logger> log)
    : store_(store), log_(std::move(log)) {}

CheckJob::~CheckJob() {
  stopping_ = true;
  const std::lock_guard lock(start_mutex_);
  if (thread_.joinable()) thread_.join();
}

nlohmann::json CheckJob::start(const nlohmann::json& request) {
  const std::string what = request.value("what", "store");
  if (what != "store" && what != "record_base" && what != "compare_base") {
    throw Error(EINVAL, "check");
  }
  const std::lock_guard lock(start_mutex_);
  if (state_.lock()->running) throw Error(EBUSY, "check");
  if (thread_.joinable()) thread_.join();
  uint64_t id = 0;
  {
    auto state = state_.lock();
    id = state->id + 1;
    *state = State{};
    state->id = id;
    state->running = true;
    state->asked = Clock::now();
  }
  try {
    thread_ =
        std::thread([this, what, repair = request.value("repair", false)] { run(what, repair); });
  } catch (const std::exception&) {
    state_.lock()->running = false;
    throw Error(EAGAIN, "check");
  }
  return {{"id", id}};
}

void CheckJob::run(const std::string& what, bool repair) {
  const CheckOptions options{.repair = repair,
                             .receive = [this](const Finding& finding) { receive(finding); },
                             .progress =
                                 [this](uint64_t done, uint64_t total) {
                                   auto state = state_.lock();
                                   state->done = done;
                                   state->total = total;
                                 },
                             .cancelled = [this] { return cancelled(); }};
  nlohmann::json end{{"state", "done"}};
  try {
    if (what == "record_base") {
      store_.record_base(options);
    } else if (what == "compare_base") {
      end["same"] = store_.compare_base(options);
    } else {
      end["result"] = to_json(store_.check(options));
    }
  } catch (const Error& error) {
    log_->warn("check: {}", error.what());
    end = {{"state", "failed"}, {"code", error.code()}, {"error", shortened(error.what(), 500)}};
  } catch (const std::exception& error) {
    log_->warn("check: {}", error.what());
    end = {{"state", "failed"}, {"code", EIO}, {"error", shortened(error.what(), 500)}};
  }
  auto state = state_.lock();
  state->end = std::move(end);
  state->running = false;
}

void CheckJob::receive(const Finding& finding) {
  if (finding.severity == Finding::Severity::damage) {
    log_->error("check: {}{}{}", finding.image, finding.image.empty() ? "" : ": ", finding.what);
  }
  Finding short_one = finding;
  short_one.what = shortened(finding.what, 600);
  auto state = state_.lock();
  if (state->findings.size() < kMostFindings) state->findings.push_back(to_json(short_one));
}

bool CheckJob::cancelled() { return stopping_ || Clock::now() - state_.lock()->asked > kPatience; }

nlohmann::json CheckJob::progress(const nlohmann::json& request) {
  auto state = state_.lock();
  if (request.value("id", uint64_t{0}) != state->id || state->id == 0) {
    throw Error(ENOENT, "check");
  }
  state->asked = Clock::now();
  nlohmann::json answer{{"state", "running"}, {"done", state->done}, {"total", state->total}};
  nlohmann::json findings = nlohmann::json::array();
  auto next = request.value("from", size_t{0});
  size_t used = 0;
  for (; next < state->findings.size(); ++next) {
    used += length_of(state->findings[next]) + 1;
    if (used > kRoom && !findings.empty()) break;
    findings.push_back(state->findings[next]);
  }
  answer["findings"] = std::move(findings);
  answer["next"] = next;
  if (!state->running && next >= state->findings.size()) answer.update(state->end);
  return answer;
}

// ---- JSON ---------------------------------------------------------------------------------------

nlohmann::json to_json(const Finding& finding) {
  nlohmann::json json{{"severity", name_of(finding.severity)},
                      {"kind", finding.kind},
                      {"image", nullptr},
                      {"layer", nullptr},
                      {"offset", nullptr},
                      {"length", nullptr},
                      {"bytes", finding.bytes},
                      {"what", finding.what},
                      {"remedy", finding.remedy},
                      {"repairable", finding.repairable},
                      {"repaired", finding.repaired}};
  if (!finding.image.empty()) json["image"] = finding.image;
  if (finding.layer != 0) json["layer"] = finding.layer;
  if (finding.range) {
    json["offset"] = finding.range->offset;
    json["length"] = finding.range->length;
  }
  return json;
}

Finding finding_from_json(const nlohmann::json& json) {
  const std::string severity = json.at("severity");
  Finding finding{.severity = severity == "damage" ? Finding::Severity::damage
                              : severity == "leak" ? Finding::Severity::leak
                                                   : Finding::Severity::note,
                  .kind = json.at("kind"),
                  .image = json.at("image").is_string() ? json["image"].get<std::string>() : "",
                  .bytes = json.at("bytes"),
                  .what = json.at("what"),
                  .remedy = json.at("remedy"),
                  .repairable = json.at("repairable"),
                  .repaired = json.at("repaired")};
  if (json.at("layer").is_number()) finding.layer = json["layer"];
  if (json.at("offset").is_number()) finding.range = ByteRange{json["offset"], json.at("length")};
  return finding;
}

nlohmann::json to_json(const CheckResult& result) {
  return {{"images", result.images},
          {"damage", result.damage},
          {"leaks", result.leaks},
          {"leaked_bytes", result.leaked_bytes},
          {"repaired", result.repaired}};
}

CheckResult check_result_from_json(const nlohmann::json& json) {
  return {.images = json.at("images"),
          .damage = json.at("damage"),
          .leaks = json.at("leaks"),
          .leaked_bytes = json.at("leaked_bytes"),
          .repaired = json.at("repaired")};
}

}  // namespace cowfs
