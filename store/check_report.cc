#include "store/check_report.h"

#include <cerrno>

#include "store/error.h"

namespace cowfs {

std::string_view name_of(Finding::Severity severity) {
  switch (severity) {
    case Finding::Severity::damage:
      return "damage";
    case Finding::Severity::leak:
      return "leak";
    case Finding::Severity::note:
      break;
  }
  return "note";
}

std::string plural(uint64_t number, const char* one, const char* many) {
  return std::to_string(number) + " " + (number == 1 ? one : many);
}

void CheckReport::add(const Finding& finding) {
  if (finding.repaired) {
    ++result_.repaired;
  } else if (finding.severity == Finding::Severity::damage) {
    ++result_.damage;
  } else if (finding.severity == Finding::Severity::leak) {
    ++result_.leaks;
    result_.leaked_bytes += finding.bytes;
  }
  options_.receive(finding);
}

void CheckReport::require_wanted() const {
  if (options_.cancelled()) throw Error(ECANCELED, "check");
}

void RangeFindings::add(uint64_t offset, uint64_t length, bool repaired) {
  if (last_ && last_->range->offset + last_->range->length == offset &&
      last_->repaired == repaired) {
    last_->range->length += length;
    if (last_->severity == Finding::Severity::leak) last_->bytes = last_->range->length;
    return;
  }
  pass_on();
  last_ = pattern_;
  last_->range = ByteRange{offset, length};
  if (last_->severity == Finding::Severity::leak) last_->bytes = length;
  last_->repaired = repaired;
}

void RangeFindings::pass_on() {
  if (!last_) return;
  if (passed_on_ < kMost) {
    report_.add(*last_);
    ++passed_on_;
  } else {
    ++more_;
    more_bytes_ += last_->range->length;
    all_repaired_ = all_repaired_ && last_->repaired;
  }
  last_.reset();
}

void RangeFindings::finish() {
  pass_on();
  if (more_ == 0) return;
  pattern_.what += "; and " + std::to_string(more_) + " more ranges like this, " +
                   std::to_string(more_bytes_) + " bytes";
  if (pattern_.severity == Finding::Severity::leak) pattern_.bytes = more_bytes_;
  pattern_.repaired = all_repaired_;
  report_.add(pattern_);
}

FlawFindings::FlawFindings(CheckReport& report, const std::string& image, uint64_t layer,
                           const std::string& place)
    : lost_(report, {.severity = Finding::Severity::damage,
                     .kind = "lost_data",
                     .image = image,
                     .layer = layer,
                     .what = "present chunks lie over a hole of the " + place +
                             ": what was written "
                             "there is lost, and reads as zeros or fails",
                     .remedy = "restore this part of the disk from a backup; if the file was "
                               "copied in a way that makes holes of zeros, as cp(1) does, it was "
                               "zeros, and nothing is lost"}),
      leaked_(report, {.severity = Finding::Severity::leak,
                       .kind = "leaked_space",
                       .image = image,
                       .layer = layer,
                       .what = "chunks that are not present hold space in the " + place,
                       .remedy = "gives the space back",
                       .repairable = true}) {}

void FlawFindings::add(const Flaw& flaw, bool repaired) {
  (flaw.kind == Flaw::Kind::lost ? lost_ : leaked_).add(flaw.offset, flaw.length, repaired);
}

void FlawFindings::finish() {
  lost_.finish();
  leaked_.finish();
}

}  // namespace cowfs
