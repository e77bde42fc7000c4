// What the commands ask of the server; see fs/control.h.

#include <fuse_lowlevel.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fs/check_job.h"
#include "fs/control.h"
#include "fs/operations.h"
#include "fs/operations_common.h"
#include "fs/reply.h"

namespace cowfs {
namespace {

/// For what is the administrator's: root, and the user that the server runs as.
void require_administrator(fuse_req_t request) {
  const uid_t caller = fuse_req_ctx(request)->uid;
  if (caller != 0 && caller != ::geteuid()) throw Error(EPERM, "ioctl");
}

/// An ioctl arrives without the flags that its file was opened with.
void require_write_permission(fuse_req_t request, const struct stat& status) {
  const fuse_ctx& caller = *fuse_req_ctx(request);
  if (caller.uid == 0) return;
  std::vector<gid_t> groups(1024);
  const int count = fuse_req_getgroups(request, static_cast<int>(groups.size()), groups.data());
  groups.resize(static_cast<size_t>(std::clamp<int>(count, 0, static_cast<int>(groups.size()))));
  groups.push_back(caller.gid);
  const bool in_group = std::find(groups.begin(), groups.end(), status.st_gid) != groups.end();
  const mode_t bit = caller.uid == status.st_uid ? S_IWUSR : in_group ? S_IWGRP : S_IWOTH;
  if ((status.st_mode & bit) == 0) throw Error(EACCES, "ioctl");
}

nlohmann::json set_space_limit(Image& image, const nlohmann::json& question) {
  const auto bytes = question.find("bytes");
  if (bytes == question.end() || !(bytes->is_null() || bytes->is_number_unsigned())) {
    throw Error(EINVAL, "ioctl");
  }
  image.set_space_limit(bytes->is_null() ? std::nullopt : std::optional(bytes->get<uint64_t>()));
  return nlohmann::json::object();
}

nlohmann::json answer_on_image(fuse_req_t request, Image& image, const std::string& ask,
                               const nlohmann::json& question) {
  if (ask == "info") return file_system(request).describe(image);
  if (ask == "set_space_limit") {
    require_administrator(request);
    return set_space_limit(image, question);
  }
  if (ask == "end_waiting") {
    require_administrator(request);
    file_system(request).end_waiting(image);
    return nlohmann::json::object();
  }
  if (ask == "clear_failure") {
    require_write_permission(request, file_system(request).status(image));
    image.clear_failure(true);
    return nlohmann::json::object();
  }
  throw Error(EINVAL, "ioctl");
}

nlohmann::json answer_on_mount(fuse_req_t request, const std::string& ask,
                               const nlohmann::json& question) {
  FileSystem& fs = file_system(request);
  if (const auto image = question.find("image"); image != question.end()) {
    if (!image->is_string()) throw Error(EINVAL, "ioctl");
    return answer_on_image(request, *fs.image(image->get<std::string>().c_str()), ask, question);
  }
  if (ask == "info") return fs.describe_mount();
  if (ask == "missing") {
    const std::vector<std::string> paths = fs.store().missing();
    return {{"count", paths.size()}, {"first", paths.empty() ? "" : paths.front()}};
  }
  if (ask == "descriptors") {
    require_administrator(request);
    return fs.describe_descriptors();
  }
  if (ask == "end_waiting") {
    require_administrator(request);
    fs.end_waiting();
    return nlohmann::json::object();
  }
  if (ask == "grow_pool") {
    require_administrator(request);
    const auto bytes = question.find("bytes");
    if (bytes == question.end() || !(bytes->is_null() || bytes->is_number_unsigned())) {
      throw Error(EINVAL, "ioctl");
    }
    return fs.grow_pool(bytes->is_null() ? std::nullopt : std::optional(bytes->get<uint64_t>()));
  }
  if (ask == "check" || ask == "check_progress") {
    require_administrator(request);
    return ask == "check" ? fs.check_job().start(question) : fs.check_job().progress(question);
  }
  throw Error(EINVAL, "ioctl");
}

void control(fuse_req_t request, fuse_ino_t inode, unsigned command, void* /*argument*/,
             fuse_file_info* /*info*/, unsigned /*flags*/, const void* in, size_t in_size,
             size_t out_size) {
  answer(request, "ioctl", inode, [&] {
    if (command != kControlRequest || in_size < sizeof(ControlMessage) ||
        out_size < sizeof(ControlMessage)) {
      throw Error(ENOTTY, "ioctl");
    }
    ControlMessage message{};
    std::memcpy(&message, in, sizeof(message));
    const nlohmann::json question = unpack(message);
    const auto ask = question.find("ask");
    if (ask == question.end() || !ask->is_string()) throw Error(EINVAL, "ioctl");
    const auto what = ask->get<std::string>();
    pack(inode == kRootInode
             ? answer_on_mount(request, what, question)
             : answer_on_image(request, *file_system(request).image(inode), what, question),
         message);
    fuse_reply_ioctl(request, 0, &message, sizeof(message));
  });
}

}  // namespace

void add_control_operations(fuse_lowlevel_ops& table) { table.ioctl = control; }

}  // namespace cowfs
