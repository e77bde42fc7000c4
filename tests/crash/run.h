#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "store/image.h"
#include "store/store.h"
#include "tests/crash/faults.h"
#include "tests/crash/oracle.h"
#include "tests/crash/recorder.h"
#include "tests/crash/scenario.h"

namespace cowfs::crash {

/// How the store is opened, in a run and afterwards.
Store::Options store_options(const std::string& directory, const std::string& base,
                             const Scenario& scenario);

/// All that the store shows.
Shown shown_by(Store& store);

/// Plays a scenario with the ordinary code, records what it does to files, and tells the oracle.
class Run {
 public:
  /// `directory` is empty; the base is made there, and the store in a directory of its own.
  Run(const Scenario& scenario, const std::string& directory);

  /// What went wrong while it ran.
  [[nodiscard]] const std::optional<std::string>& failure() const { return failure_; }
  [[nodiscard]] const std::vector<Operation>& operations() const { return recorder_.operations(); }
  [[nodiscard]] const Oracle& oracle() const { return oracle_; }
  [[nodiscard]] const std::string& base_path() const { return base_path_; }

  /// Before this position there is nothing to look at.
  [[nodiscard]] Position start() const { return start_; }
  /// When the store was made: it has to be there afterwards.
  [[nodiscard]] Position made() const { return made_; }
  [[nodiscard]] Position end() const { return end_; }
  /// When each step returned.
  [[nodiscard]] const std::vector<Position>& step_ends() const { return step_ends_; }

 private:
  void play();
  void open();
  void kill_and_open();
  void faulty_step(const Step& step);
  void recover();
  void step(const Step& step);
  void data_step(const Step& step);
  void names_step(const Step& step);
  void copy(const Step& step);
  void flush(const Step& step);
  void together(const Step& step);
  void reopen();
  void look(const char* when);

  Image& use(const std::string& name);
  [[nodiscard]] Bytes bytes_for(const Step& step);
  void done(Oracle::Token token);

  const Scenario& scenario_;
  const std::string base_path_;
  const std::string root_;
  const Bytes base_;
  Recorder recorder_;
  Faults faults_;
  Oracle oracle_;
  std::unique_ptr<Store> store_;
  std::map<std::string, Image::Use> uses_;
  std::vector<Image::Use> nameless_;  // uses of images that were removed
  std::atomic<uint64_t> fills_ = 0;
  std::optional<std::string> failure_;
  Position start_ = 0;
  Position made_ = 0;
  Position end_ = 0;
  std::vector<Position> step_ends_;
};

}  // namespace cowfs::crash
