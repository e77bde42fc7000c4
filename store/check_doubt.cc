#include "store/check_doubt.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace cowfs {
namespace {

using Severity = Finding::Severity;

/// Leaks of which nothing is repaired are told of as such.
Finding as_doubted(Finding finding, const Doubt& doubt) {
  const bool of_all = doubt.about_all() && finding.repairable;
  const bool of_layer = finding.kind == "leaked_space" && doubt.about(finding.layer);
  if (!of_all && !of_layer) return finding;
  finding.repairable = false;
  finding.remedy = of_all ? "nothing is repaired while the catalog may not be the right one"
                          : "left alone while this image has damage: it may be what is missing";
  return finding;
}

}  // namespace

void Doubt::note(const Finding& finding) {
  constexpr std::array<std::string_view, 4> kAbout{"newer_file", "no_layer", "shared_layer",
                                                   "catalog_rows"};
  if (finding.severity != Severity::damage || finding.repairable) return;
  if (std::find(kAbout.begin(), kAbout.end(), finding.kind) != kAbout.end()) all_ = true;
  // Lost data and a failed sync say nothing against the map, which is what was committed last.
  const bool of_map = finding.kind != "lost_data" && finding.kind != "failed_image";
  if (finding.layer != 0 && of_map) layers_.insert(finding.layer);
}

CheckResult look_then_repair(
    const CheckOptions& options,
    const std::function<CheckResult(const CheckOptions&, const Doubt&)>& run) {
  std::vector<Finding> findings;
  Doubt doubt;
  CheckOptions look = options;
  look.repair = false;
  look.receive = [&](const Finding& finding) {
    doubt.note(finding);
    findings.push_back(finding);
  };
  if (options.repair) {
    look.progress = [&](uint64_t done, uint64_t total) { options.progress(done, 2 * total); };
  }
  const CheckResult looked = run(look, {});

  const bool something = std::any_of(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.severity != Severity::note;
  });
  if (options.repair && something && !doubt.about_all()) {
    CheckOptions repair = options;
    repair.receive = [&](const Finding& finding) { options.receive(as_doubted(finding, doubt)); };
    repair.progress = [&](uint64_t done, uint64_t total) {
      options.progress(total + done, 2 * total);
    };
    return run(repair, doubt);
  }
  for (const Finding& finding : findings) options.receive(as_doubted(finding, doubt));
  if (options.repair && doubt.about_all()) {
    options.receive({.severity = Severity::note,
                     .kind = "note",
                     .image = "",
                     .what = "nothing is repaired: the catalog cannot be trusted, and what looks "
                             "like a leak may be what the right one knows; put that back first",
                     .remedy = ""});
  }
  return looked;
}

}  // namespace cowfs
