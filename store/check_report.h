#pragma once

#include <memory>
#include <string>

#include "store/check.h"
#include "store/layer.h"

namespace cowfs {

/// The remedy where the catalog says what cannot be.
inline constexpr const char* kCopyBack = "put catalog.db back from a copy";

/// "1 map page belongs", "2 map pages belong".
std::string plural(uint64_t number, const char* one, const char* many);

/// What a check has found so far: counts it and passes it on.
class CheckReport {
 public:
  explicit CheckReport(const CheckOptions& options) : options_(options) {}

  void add(const Finding& finding);
  [[nodiscard]] const CheckOptions& options() const { return options_; }
  [[nodiscard]] CheckResult& result() { return result_; }
  /// ECANCELED if the check is to end.
  void require_wanted() const;

 private:
  const CheckOptions& options_;
  CheckResult result_;
};

/// Findings that differ in their range alone, found in the order of offsets: neighbours become one,
/// and what is more than some hundreds is counted in a last one.
class RangeFindings {
 public:
  /// `pattern` is a finding without range.
  RangeFindings(CheckReport& report, Finding pattern)
      : report_(report), pattern_(std::move(pattern)) {}
  RangeFindings(const RangeFindings&) = delete;
  RangeFindings& operator=(const RangeFindings&) = delete;

  void add(uint64_t offset, uint64_t length, bool repaired);
  /// To be called once, at the end.
  void finish();

 private:
  void pass_on();

  static constexpr uint64_t kMost = 1000;
  CheckReport& report_;
  Finding pattern_;
  std::optional<Finding> last_;
  uint64_t passed_on_ = 0;
  uint64_t more_ = 0;
  uint64_t more_bytes_ = 0;
  bool all_repaired_ = true;  // of those
};

/// The flaws of one layer as findings.
class FlawFindings {
 public:
  /// `place` is what its chunks lie in: "CoW file".
  FlawFindings(CheckReport& report, const std::string& image, uint64_t layer,
               const std::string& place);
  void add(const Flaw& flaw, bool repaired);
  void finish();

 private:
  RangeFindings lost_;
  RangeFindings leaked_;
};

}  // namespace cowfs
