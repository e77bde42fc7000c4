#include "store/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/facts.h"
#include "cmd/progress.h"
#include "cmd/sizes.h"
#include "cmd/target.h"
#include "fs/check_job.h"
#include "fs/control.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr HelpTexts kCheckHelp{
    .command = "check",
    .usage = "[OPTION]... STORE|MOUNT",
    .what =
        "Verifies a store that nobody uses, or a mounted one while it is in use: the catalog, the\n"
        "CoW files, the space that they take, the base. Changes nothing without --repair. With\n"
        "--record-base or --base it reads all of the base instead. With --clear, an IMAGE whose\n"
        "sync had failed takes writes again.",
    .examples =
        "  cowfs check /srv/base.img.cowfs\n"
        "  cowfs check --repair /srv/base.img.cowfs\n"
        "  cowfs check --json /mnt/vms\n"
        "  cowfs check --record-base /mnt/vms\n"
        "  cowfs check --base --base-path /new/base.img /srv/base.img.cowfs\n"
        "  cowfs check --clear /mnt/vms/dom1.img\n"
        "  cowfs check --clear --store /srv/base.img.cowfs dom1.img\n",
    .exit_status =
        "  0 clean, 1 it could not be checked or the command line makes no sense, 2 damage,\n"
        "  3 leaks only\n",
    .section = 8};

enum CheckStatus : int { kClean = 0, kDamage = 2, kLeaks = 3 };

struct Line {
  std::string target;
  std::optional<std::string> store;
  std::optional<std::string> base_path;
  bool repair = false;
  bool json = false;
  bool record_base = false;
  bool base = false;
  bool clear = false;
};

/// What is checked: a mount, or a store that nobody has open.
struct Target {
  std::optional<MountEntry> mount;
  std::string store;
};

Target find_target(const Line& line) {
  const std::string path = followed_path(line.store.value_or(line.target));
  const std::optional<MountEntry> mount = mount_at(path);
  if (mount && is_cowfs(*mount) && !line.store) {
    require_alive(*mount);
    return {mount, ""};
  }
  std::error_code error;
  if (std::filesystem::exists(path, error) && !std::filesystem::is_directory(path, error)) {
    throw Error::with_message(
        ENOTDIR,
        path + ": is neither a store nor a mount; an image is checked with all of its mount");
  }
  const std::optional<Holder> holder = StoreLock::holder(path);
  if (holder && !holder->ending && !holder->mount.empty() && mount_at(holder->mount)) {
    throw Error::with_message(
        EBUSY, fmt::format("store {}: is mounted on {}, and what lies in it does not agree while "
                           "its server works; say `cowfs check {}`",
                           path, holder->mount, holder->mount));
  }
  return {std::nullopt, path};
}

// ---- what is printed ----------------------------------------------------------------------------

class Printer {
 public:
  Printer(const Target& target, bool json) : target_(target), json_(json) {}

  void add(const Finding& finding) {
    if (json_) {
      findings_.push_back(in_order(finding));
      return;
    }
    if (++lines_[{finding.image, finding.kind}] > kMostLines) return;
    progress_.clear();
    fmt::print("{}\n", printable(line_of(finding)));
  }

  void finish(const CheckResult& result) {
    progress_.clear();
    if (json_) {
      print_json({{"store", target_.mount ? Json() : Json(target_.store)},
                  {"mount", target_.mount ? Json(target_.mount->point) : Json()},
                  {"state", result.damage > 0  ? "damage"
                            : result.leaks > 0 ? "leaks"
                                               : "clean"},
                  {"images", result.images},
                  {"damage", result.damage},
                  {"leaks", result.leaks},
                  {"leaked_bytes", result.leaked_bytes},
                  {"repaired", result.repaired},
                  {"findings", findings_}});
      return;
    }
    for (const auto& [about, count] : lines_) {
      if (count <= kMostLines) continue;
      fmt::print("{}{} more like this ({}); --json shows all\n",
                 about.first.empty() ? "" : printable(about.first) + ": ", count - kMostLines,
                 about.second);
    }
    fmt::print("{}\n", summary_of(result));
  }

  [[nodiscard]] Progress& progress() { return progress_; }

 private:
  static constexpr uint64_t kMostLines = 20;  // of an image and a kind of finding

  static Json in_order(const Finding& finding) {
    const nlohmann::json json = to_json(finding);
    Json ordered;
    for (const char* key : {"severity", "kind", "image", "layer", "offset", "length", "bytes",
                            "what", "remedy", "repairable", "repaired"}) {
      ordered[key] = json.at(key);
    }
    return ordered;
  }

  [[nodiscard]] std::string line_of(const Finding& finding) const {
    std::string text(name_of(finding.severity));
    if (!finding.image.empty()) text += ": " + finding.image;
    if (finding.range) {
      text += fmt::format(": bytes {} to {}", finding.range->offset,
                          finding.range->offset + finding.range->length - 1);
    }
    text += ": " + finding.what;
    if (finding.bytes > 0 && !finding.range) text += " (" + format_size(finding.bytes) + ")";
    if (finding.repaired) return text + "; repaired";
    if (!finding.repairable) return text + (finding.remedy.empty() ? "" : "; " + finding.remedy);
    // A server does not have mended what it has in memory.
    const bool here = !target_.mount || finding.severity == Finding::Severity::leak;
    return text + "; --repair" + (here ? " " : ", of the store at rest, ") + finding.remedy;
  }

  static std::string summary_of(const CheckResult& result) {
    const auto count = [](uint64_t number, const char* what) {
      return fmt::format("{} {}{}", number, what, number == 1 ? "" : "s");
    };
    std::string text = result.damage + result.leaks == 0 ? "clean" : "";
    if (result.damage > 0) text = fmt::format("damaged in {}", count(result.damage, "place"));
    if (result.leaks > 0) {
      text += (text.empty() ? "" : ", ") + count(result.leaks, "leak");
      if (result.leaked_bytes > 0) text += " of " + format_size(result.leaked_bytes);
    }
    // Of a catalog that cannot be read it is not known.
    if (result.images > 0 || result.damage == 0) text += "; " + count(result.images, "image");
    if (result.repaired > 0) text += "; " + count(result.repaired, "finding") + " repaired";
    return text;
  }

  const Target& target_;
  const bool json_;
  std::vector<Json> findings_;
  std::map<std::pair<std::string, std::string>, uint64_t> lines_;
  Progress progress_;
};

int status_of(const CheckResult& result) {
  if (result.damage > 0) return kDamage;
  return result.leaks > 0 ? kLeaks : kClean;
}

// ---- by the server of a mount -------------------------------------------------------------------

/// Has the server do it, and waits; returns what it said last. The job ends by itself if this
/// command does not come to ask.
nlohmann::json run_job(const MountEntry& mount, const nlohmann::json& request, const char* what,
                       Printer& printer) {
  const auto ask = [&](const nlohmann::json& question) {
    try {
      return ask_server(mount.point, question);
    } catch (const Error& error) {
      if (error.code() == EBUSY) {
        throw Error::with_message(EBUSY, mount.point + ": another check of it is under way");
      }
      if (error.code() == EPERM) {
        throw Error::with_message(
            EPERM, mount.point + ": only root and who mounted it may have it checked");
      }
      if (is_dead_server(error.code())) require_alive(mount);
      throw;
    }
  };
  constexpr std::chrono::milliseconds kLongPause{100};
  const nlohmann::json id = ask(request).at("id");
  uint64_t from = 0;
  for (std::chrono::milliseconds pause{5};; pause = std::min(2 * pause, kLongPause)) {
    nlohmann::json answer = ask({{"ask", "check_progress"}, {"id", id}, {"from", from}});
    for (const nlohmann::json& finding : answer.at("findings")) {
      printer.add(finding_from_json(finding));
    }
    const bool more = answer.at("next") != from;
    from = answer.at("next");
    printer.progress().show(what, answer.at("done"), answer.at("total"));
    if (answer.at("state") == "failed") {
      throw Error::with_message(answer.at("code"), answer.at("error"));
    }
    if (answer.at("state") == "done") return answer;
    if (!more) std::this_thread::sleep_for(pause);
  }
}

// ---- what is asked for --------------------------------------------------------------------------

int check(const Line& line) {
  const Target target = find_target(line);
  Printer printer(target, line.json);
  CheckResult result;
  if (target.mount) {
    const nlohmann::json last =
        run_job(*target.mount, {{"ask", "check"}, {"what", "store"}, {"repair", line.repair}},
                "checking", printer);
    result = check_result_from_json(last.at("result"));
  } else {
    result = check_store(
        target.store,
        {.repair = line.repair,
         .receive = [&](const Finding& finding) { printer.add(finding); },
         .progress = [&](uint64_t done,
                         uint64_t total) { printer.progress().show("checking", done, total); }});
  }
  printer.finish(result);
  return status_of(result);
}

CheckOptions with_progress(Printer& printer) {
  return {.receive = [](const Finding&) {},
          .progress =
              [&printer](uint64_t done, uint64_t total) {
                printer.progress().show("reading the base", done, total);
              }};
}

int record_base(const Line& line) {
  const Target target = find_target(line);
  Printer printer(target, false);
  if (target.mount) {
    run_job(*target.mount, {{"ask", "check"}, {"what", "record_base"}}, "reading the base",
            printer);
  } else {
    const std::unique_ptr<Store> store = open_store(target.store, "check", Needs::base);
    store->record_base(with_progress(printer));
    close_store(*store);
  }
  printer.progress().clear();
  fmt::print("base: its checksum is recorded\n");
  return kClean;
}

int compare_base(const Line& line) {
  const Target target = find_target(line);
  Printer printer(target, false);
  bool same = false;
  if (target.mount && line.base_path) {
    throw UsageError(
        "--base-path goes with a store that is not mounted: a mount has its base open");
  }
  if (target.mount) {
    same = run_job(*target.mount, {{"ask", "check"}, {"what", "compare_base"}}, "reading the base",
                   printer)
               .at("same");
  } else {
    const std::optional<std::string> path =
        line.base_path ? std::optional(followed_path(*line.base_path)) : std::nullopt;
    same = compare_base(target.store, path, with_progress(printer));
  }
  printer.progress().clear();
  fmt::print("{}\n", same ? "base: every byte is as it was when its checksum was recorded"
                          : "damage: base: it is not what it was when its checksum was recorded; "
                            "bring the old base back");
  return same ? kClean : kDamage;
}

int clear(const Line& line) {
  if (line.store) {
    check_name(line.target);
    const std::unique_ptr<Store> store = open_store(*line.store, "check", Needs::names);
    const std::shared_ptr<Image> image = store->find(line.target);
    if (image == nullptr) throw Error(ENOENT, "image " + line.target);
    image->clear_failure(false);
    close_store(*store);
    return kClean;
  }
  const ImagePath image = image_in_mount(line.target);
  try {
    ask_server(image.path, {{"ask", "clear_failure"}});
  } catch (const Error& error) {
    if (error.code() != EBUSY) throw;
    throw Error::with_message(EBUSY, image.path + ": is in use; `cowfs ls` tells who has it open");
  }
  return kClean;
}

}  // namespace

int run_check(const Arguments& arguments) {
  Line values;
  CommandLine line(kCheckHelp);
  line.argument("TARGET", values.target, "a store or a mount point; with --clear, an image",
                CommandLine::Needed::no);
  line.flag("--repair", values.repair,
            "repair what can be repaired without guessing; leaks only, of a mounted store");
  line.flag("--json", values.json, "print JSON; cowfs-check(8) has the keys");
  line.flag("--record-base", values.record_base, "record a checksum of the whole base");
  line.flag("--base", values.base, "compare the whole base with the recorded checksum");
  line.option("--base-path", values.base_path, "PATH", "with --base: where the base lies now");
  line.flag("--clear", values.clear, "let an image take writes again of which a sync failed");
  line.option("--store", values.store, "DIR", "the store, which is not mounted");
  if (!line.parse(arguments)) return kClean;

  if (values.record_base + values.base + values.clear > 1) {
    throw UsageError("--record-base, --base and --clear exclude each other");
  }
  const bool only_checks = !values.record_base && !values.base && !values.clear;
  if (!only_checks && (values.repair || values.json)) {
    throw UsageError("--repair and --json do not go with --record-base, --base and --clear");
  }
  if (values.base_path && !values.base) throw UsageError("--base-path goes with --base only");
  if (values.target.empty() != (values.store && !values.clear)) {
    throw UsageError(values.clear ? "an image is missing" : "one store or mount is to be named");
  }
  if (values.clear) return clear(values);
  if (values.record_base) return record_base(values);
  if (values.base) return compare_base(values);
  return check(values);
}

}  // namespace cowfs
