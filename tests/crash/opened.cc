#include "tests/crash/opened.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "store/check.h"
#include "store/error.h"
#include "tests/crash/run.h"

namespace cowfs::crash {
namespace {

/// Writes to the first image and grows it, as a machine that goes on would. Returns what is to be
/// seen afterwards.
Shown go_on(Store& store, Shown shown) {
  if (shown.empty()) return shown;
  auto& [name, bytes] = *shown.begin();
  const Image::Use image = store.find(name)->use();
  // What is behind the end must not come to light.
  bytes.resize(bytes.size() + 5000);
  image->extend(bytes.size());
  const uint64_t offset = bytes.size() / 3;
  const Bytes data(700, std::byte{0xa5});
  std::copy(data.begin(), data.end(), bytes.begin() + static_cast<std::ptrdiff_t>(offset));
  image->write(data, offset);
  image->flush();
  return shown;
}

/// What damage `cowfs check` sees in a store that was opened and closed again. A power cut may
/// leave leaks: the space of writes that were not committed, the file of an image never flushed.
std::string check(const std::string& directory) {
  std::string text;
  CheckOptions options;
  options.receive = [&text](const Finding& finding) {
    if (finding.severity != Finding::Severity::damage) return;
    text += "the check: " + finding.image + " " + finding.kind + ": " + finding.what + "\n  ";
  };
  check_store(directory, options);
  return text;
}

}  // namespace

Opened open_state(const Disk& disk, const Scenario& scenario, const std::string& directory,
                  const std::string& base_path, bool may_be_new) {
  std::filesystem::remove_all(directory);
  if (::mkdir(directory.c_str(), 0700) != 0) throw Error(errno, directory);
  disk.materialise(directory);
  Store::Options options = store_options(directory + "/store", base_path, scenario);
  options.create = may_be_new;
  Opened opened;
  try {
    Shown expected;
    {
      Store store(options);
      opened.shown = shown_by(store);
    }
    if (scenario.fault) {
      // A failed image is one until somebody says that he knows.
      Store store(options);
      store.close();
      store.clear_failures();
    }
    {
      Store store(options);
      expected = go_on(store, opened.shown);
    }
    if (const std::string findings = check(options.directory); !findings.empty()) {
      opened.error = findings;
      return opened;
    }
    Store store(options);
    const Shown shown = shown_by(store);
    for (const auto& [name, bytes] : expected) {
      if (!shown.contains(name) || shown.at(name) != bytes) {
        opened.error = "image " + name + " is not as it was written after the power cut";
      }
    }
  } catch (const Error& error) {
    opened.error = error.what();
  }
  return opened;
}

}  // namespace cowfs::crash
