#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "store/base_content.h"
#include "store/base_format.h"
#include "store/file.h"

namespace cowfs {

/// A file of a base, and how it is read.
struct BaseLink {
  std::string path;
  BaseFormat format = BaseFormat::raw;
};

/// How a base is to be opened.
struct BaseOptions {
  /// What the store has on record, the base first and then each file's backing file. Their formats
  /// hold, and their paths are allowed. Empty: nothing is.
  std::vector<BaseLink> recorded = {};
  /// Formats that neither the record nor a header names are found by first bytes: for who makes a
  /// store, or accepts a changed base. Else the base is raw, and a backing file refused.
  bool find_formats = false;
  std::optional<BaseFormat> format = std::nullopt;     ///< the base's, where none is recorded
  std::optional<std::string> snapshot = std::nullopt;  ///< the internal one to show
  /// Files, or directories with all below them, besides the directory of the file that names it, in
  /// which a backing file may be.
  std::vector<std::string> allow_backing = {};
};

/// An open file of a base, read-only and with its access time left alone where that is allowed.
struct BaseFile {
  File file;
  uint64_t length;  ///< bytes of the file when it was opened
  bool is_device;
  BaseFormat format;
};

/// A base and the backing files that image files name, opened from the base down.
///
/// What an image file names may be a stranger's choice (I10). So a backing file is opened only
/// where it is allowed to be, after symbolic links have been followed: in or below the directory of
/// the file that names it, or where options say. Names that are no paths (`json:...`, `nbd://...`),
/// loops and chains of more than 64 files are refused. All files stay open: later nothing else is.
class BaseChain {
 public:
  /// Says in its Error what is wrong, beginning with "base PATH: ".
  BaseChain(const std::string& path, const BaseOptions& options, const FaultHook* hook);
  BaseChain(const BaseChain&) = delete;
  BaseChain& operator=(const BaseChain&) = delete;
  ~BaseChain() { caches_->helpers.stop(); }  // they use what goes next

  /// The base first; at least one.
  [[nodiscard]] const std::vector<std::unique_ptr<const BaseFile>>& files() const { return files_; }
  /// The disk that they hold together.
  [[nodiscard]] const BaseContent& content() const { return *contents_.front(); }

 private:
  struct Named {
    std::string backing;  // empty: none
    std::string format;   // empty: it does not say
  };
  /// Adds the content of the last of the files.
  Named add_content(const BaseOptions& options);
  void add_backing(const Named& named, const BaseOptions& options, const FaultHook* hook);
  void add_file(const std::string& path, std::optional<BaseFormat> format, const FaultHook* hook);
  [[nodiscard]] std::string title(size_t position) const;

  std::vector<std::unique_ptr<const BaseFile>> files_;
  std::unique_ptr<BaseCaches> caches_ = std::make_unique<BaseCaches>();
  std::vector<std::unique_ptr<BaseContent>> contents_;
};

/// Opens a file that is to serve as base, without looking into it; says in its Error if it cannot.
File open_base_file(const std::string& path, const FaultHook* hook = nullptr);

}  // namespace cowfs
