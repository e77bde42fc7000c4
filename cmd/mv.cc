#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/target.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr HelpTexts kMvHelp{
    .command = "mv",
    .usage = "[OPTION]... IMAGE NEW",
    .what =
        "Renames an image; who has it open does not notice. Both are paths in one mount; with\n"
        "--store, names.",
    .examples =
        "  cowfs mv /mnt/vms/dom1.img /mnt/vms/web.img\n"
        "  cowfs mv --force /mnt/vms/new.img /mnt/vms/web.img\n"
        "  cowfs mv --store /srv/base.img.cowfs dom1.img web.img\n"};

[[noreturn]] void refuse_existing(const std::string& name) {
  throw Error::with_message(EEXIST, name + ": exists already; --force replaces it");
}

void rename_in_mount(const std::string& from_path, const std::string& to_path, bool force) {
  const ImagePath from = image_in_mount(from_path);
  status_of(from);
  const ImagePath to = image_in_mount(to_path);
  if (from.mount.point != to.mount.point) {
    throw Error::with_message(EXDEV, from.path + " and " + to.path +
                                         ": are not in the same mount; copy the image with cp(1)");
  }
  require_goes_on(from, "is not renamed");
  if (force && ::access(to.path.c_str(), F_OK) == 0) require_goes_on(to, "is not replaced");
  if (::renameat2(AT_FDCWD, from.path.c_str(), AT_FDCWD, to.path.c_str(),
                  force ? 0 : RENAME_NOREPLACE) == 0) {
    return;
  }
  if (errno == EEXIST) refuse_existing(to.path);
  throw Error{errno, "rename " + from.path + " to " + to.path};
}

void rename_in_store(const std::string& directory, const std::string& from, const std::string& to,
                     bool force) {
  check_name(from);
  check_name(to);
  const std::unique_ptr<Store> store = open_store(directory, "mv", Needs::names);
  if (!force && store->find(to) != nullptr && store->find(from) != nullptr) refuse_existing(to);
  store->rename(from, to, force ? Store::Rename::replace : Store::Rename::no_replace);
  close_store(*store);
}

}  // namespace

int run_mv(const Arguments& arguments) {
  std::string from;
  std::string to;
  std::optional<std::string> store;
  bool force = false;
  CommandLine line(kMvHelp);
  line.argument("IMAGE", from, "the image");
  line.argument("NEW", to, "its new path, or name");
  line.flag("--force", force, "replace NEW if there is one: what was written to it is lost");
  line.option("--store", store, "DIR", "rename it in this store, which is not mounted");
  if (!line.parse(arguments)) return kDone;

  if (store) {
    rename_in_store(*store, from, to, force);
  } else {
    rename_in_mount(from, to, force);
  }
  return kDone;
}

}  // namespace cowfs
