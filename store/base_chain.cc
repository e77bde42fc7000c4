#include "store/base_chain.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "store/base_qcow1.h"
#include "store/base_qcow2.h"
#include "store/base_raw.h"
#include "store/chunk_size.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr size_t kMaxChain = 64;

/// Opens a regular file or a block device, for reading.
File open_image_file(const std::string& path, const std::string& title, int flags,
                     const FaultHook* hook) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw Error{errno, title};
  if (S_ISDIR(status.st_mode)) {
    throw Error::with_message(
        EISDIR, title + ": is a directory; an image file or a block device can serve as base");
  }
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    throw Error::with_message(EINVAL, title + ": is neither a regular file nor a block device");
  }
  flags |= O_RDONLY;
  try {
    // Only the owner and root may leave the access time alone.
    return {path, flags | O_NOATIME, 0, hook};
  } catch (const Error& error) {
    if (error.code() != EPERM) throw Error(error.code(), title);
  }
  return {path, flags, 0, hook};
}

/// Whether `path` is `place` or below it; both are canonical.
bool is_in(const std::string& path, const std::string& place) {
  return path == place || path.starts_with(place == "/" ? place : place + "/");
}

std::string directory_of(const File& file) {
  return std::filesystem::canonical(file.path()).parent_path();
}

/// A format as qcow2 headers name it.
std::optional<BaseFormat> find_named_format(const std::string& name) {
  if (name == "file" || name == "host_device") return BaseFormat::raw;  // as QEMU once wrote
  return find_base_format(name);
}

}  // namespace

File open_base_file(const std::string& path, const FaultHook* hook) {
  std::error_code ignored;
  const std::string absolute = std::filesystem::absolute(path, ignored).lexically_normal();
  return open_image_file(absolute, "base " + absolute, 0, hook);
}

BaseChain::BaseChain(const std::string& path, const BaseOptions& options, const FaultHook* hook) {
  std::optional<BaseFormat> format = options.format;
  if (!options.recorded.empty()) {
    format = options.recorded.front().format;
  } else if (!options.find_formats && !format) {
    format = BaseFormat::raw;
  }
  File file = open_base_file(path, hook);
  const uint64_t length = file.size();
  const bool is_device = S_ISBLK(file.status().st_mode);
  if (!format) format = guess_base_format(file);
  files_.push_back(
      std::make_unique<BaseFile>(BaseFile{std::move(file), length, is_device, *format}));

  Named named = add_content(options);
  const uint64_t size = content().size();
  if (size == 0) throw Error::with_message(EINVAL, title(0) + ": is empty");
  if (size > kMaxImageSize) throw Error::with_message(EFBIG, title(0) + ": is larger than 1 PiB");
  while (!named.backing.empty()) {
    add_backing(named, options, hook);
    named = add_content(options);
    // The one above has a map, or it would name none.
    static_cast<MappedContent&>(**std::prev(contents_.end(), 2))
        .set_backing(contents_.back().get());
  }
}

std::string BaseChain::title(size_t position) const {
  std::string text = "base " + files_.front()->file.path();
  if (position > 0) text += ": its backing file " + files_[position]->file.path();
  return text;
}

BaseChain::Named BaseChain::add_content(const BaseOptions& options) {
  const BaseFile& last = *files_.back();
  const MappedContent::Files parts{last.file, last.length, *caches_, title(files_.size() - 1)};
  const bool wants_snapshot = files_.size() == 1 && options.snapshot.has_value();
  if (wants_snapshot && last.format != BaseFormat::qcow2) {
    throw Error::with_message(EINVAL, parts.title + ": is read as " +
                                          std::string(format_name(last.format)) +
                                          ", which has no snapshots; only qcow2 has");
  }
  if (last.format == BaseFormat::raw) {
    contents_.push_back(std::make_unique<RawContent>(last.file, last.length));
    return {};
  }
  if (last.format == BaseFormat::qcow) {
    const qcow1::Header header = qcow1::read_header(last.file, last.length, parts.title);
    contents_.push_back(std::make_unique<Qcow1Content>(parts, header));
    return {header.backing_name, ""};
  }
  const qcow2::Header header = qcow2::read_header(last.file, last.length, parts.title);
  contents_.push_back(
      std::make_unique<Qcow2Content>(parts, header, wants_snapshot ? &*options.snapshot : nullptr));
  return {header.backing_name, header.backing_format};
}

void BaseChain::add_backing(const Named& named, const BaseOptions& options, const FaultHook* hook) {
  const std::string subject =
      title(files_.size() - 1) + ": names the backing file '" + printable(named.backing) + "', ";
  const auto refuse = [&](int code, const std::string& why) {
    throw Error::with_message(code, subject + why);
  };
  if (files_.size() == kMaxChain) refuse(ELOOP, "which is one more than the 64 files of a chain");
  if (named.backing.find('\0') != std::string::npos) refuse(EUCLEAN, "with a zero byte in it");
  // As QEMU tells a protocol from a path.
  const size_t colon = named.backing.find(':');
  if (colon != std::string::npos && named.backing.find('/') > colon) {
    refuse(EOPNOTSUPP, "which names no file by its path (" +
                           printable(named.backing.substr(0, colon)) +
                           ":); `qemu-img rebase -u` gives it a path");
  }

  const std::string own_directory = directory_of(files_.back()->file);
  const std::filesystem::path where = std::filesystem::path(own_directory) / named.backing;
  std::error_code error;
  const std::string path = std::filesystem::weakly_canonical(where, error);
  if (error) refuse(error.value(), "which cannot be found: " + error.message());
  const size_t position = files_.size();
  bool allowed = is_in(path, own_directory);
  for (const BaseLink& link : options.recorded) allowed = allowed || link.path == path;
  for (const std::string& place : options.allow_backing) {
    const std::filesystem::path real = std::filesystem::canonical(place, error);
    allowed = allowed || (!error && is_in(path, real));
  }
  if (!allowed) {
    refuse(EACCES, (path == where ? "which is" : "which is " + printable(path) + ",") +
                       std::string(" outside the directory ") + printable(own_directory) +
                       "; --allow-backing allows it, if the image can be trusted");
  }

  // What is on record holds, but where a changed base is accepted: then first what its header says
  // now, and in no case what a file that is on record says of itself.
  const bool on_record = position < options.recorded.size() &&
                         (!options.find_formats || options.recorded[position].path == path);
  std::optional<BaseFormat> format;
  if (on_record && (!options.find_formats || named.format.empty())) {
    format = options.recorded[position].format;
  } else if (!named.format.empty()) {
    format = find_named_format(named.format);
    if (!format) {
      refuse(EOPNOTSUPP,
             "of the format '" + printable(named.format) + "'; cowfs reads raw, qcow2 and qcow");
    }
  } else if (!options.find_formats) {
    refuse(EINVAL, "without its format; `qemu-img rebase -u -F FORMAT` adds that");
  }
  add_file(path, format, hook);
}

void BaseChain::add_file(const std::string& path, std::optional<BaseFormat> format,
                         const FaultHook* hook) {
  const std::string subject = title(0) + ": its backing file " + path;
  // Not through a link that has come to be there since the path was looked at, nor through one of
  // its directories; and if it has become a pipe, it is not waited for.
  struct stat there {};
  if (::lstat(path.c_str(), &there) != 0 && errno == ENOENT) {
    throw Error::with_message(ENOENT, subject +
                                          ": is missing; put it back, or, if it was moved, "
                                          "`qemu-img rebase -u` has its new path written to " +
                                          files_.back()->file.path());
  }
  File file = open_image_file(path, subject, O_NOFOLLOW | O_NONBLOCK, hook);
  std::error_code error;
  const std::filesystem::path really =
      std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(file.fd()), error);
  if (error || really != path) {
    throw Error::with_message(EAGAIN, subject + ": was replaced while it was opened");
  }
  const struct stat status = file.status();
  const bool is_device = S_ISBLK(status.st_mode);
  for (const auto& above : files_) {
    const struct stat other = above->file.status();
    const bool same = is_device ? S_ISBLK(other.st_mode) && other.st_rdev == status.st_rdev
                                : other.st_dev == status.st_dev && other.st_ino == status.st_ino;
    if (same) throw Error::with_message(ELOOP, subject + ": is above itself: a loop");
  }
  const uint64_t length = file.size();
  if (!format) format = guess_base_format(file);
  files_.push_back(
      std::make_unique<BaseFile>(BaseFile{std::move(file), length, is_device, *format}));
}

}  // namespace cowfs
