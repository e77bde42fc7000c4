#include "cmd/flush.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "cmd/progress.h"
#include "cmd/target.h"
#include "store/error.h"
#include "store/file.h"

namespace cowfs {

std::string way_to_space(const MountEntry& mount, const nlohmann::json& facts) {
  if (facts.value("pool", nlohmann::json()).is_null()) return "make room";
  return fmt::format("make room (`cowfs pool grow {}` enlarges a full pool)", mount.point);
}

void require_none_waits(const MountEntry& mount, const nlohmann::json& facts) {
  const auto parked = facts.at("parked").get<uint64_t>();
  if (parked == 0) return;
  throw Error::with_message(
      EBUSY,
      fmt::format("{}: not everything can be made durable: {} write{} for space in {}, or for "
                  "more than a limit allows; {}, or end them with cowfs umount "
                  "--force, which loses what they wrote",
                  mount.point, parked, parked == 1 ? " waits" : "s wait",
                  facts.at("store").get<std::string>(), way_to_space(mount, facts)));
}

namespace {

/// Whether an image that could not be opened for this reason is not in use either: what its layer
/// is keeps the server from using it, so there is nothing to flush.
bool is_unusable(int code) { return code == EUCLEAN || code == EOPNOTSUPP || code == EBUSY; }

}  // namespace

std::vector<std::string> flush_images(const MountEntry& mount) {
  const std::vector<std::string> names = image_names(mount);
  std::vector<std::string> failures;
  Progress progress;
  for (size_t i = 0; i < names.size(); ++i) {
    progress.show(fmt::format("flushing: image {} of {}", i + 1, names.size()));
    int code = 0;
    try {
      const File image(mount.point + "/" + names[i], O_RDONLY | O_NOFOLLOW);
      if (::fsync(image.fd()) != 0) code = errno;
    } catch (const Error& error) {
      if (error.code() == ENOENT || is_unusable(error.code())) continue;  // or removed meanwhile
      code = error.code();
    }
    if (is_dead_server(code)) require_alive(mount);
    if (code != 0) failures.push_back("image " + names[i] + ": " + error_text(code));
  }
  return failures;
}

std::string join_failures(const std::vector<std::string>& failures) {
  constexpr size_t kShown = 10;
  std::string text;
  for (size_t i = 0; i < failures.size() && i < kShown; ++i) {
    text += (i > 0 ? "; " : "") + failures[i];
  }
  if (failures.size() > kShown) text += fmt::format("; and {} more", failures.size() - kShown);
  return text;
}

}  // namespace cowfs
