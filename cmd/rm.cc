#include <unistd.h>

#include <cerrno>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/target.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr HelpTexts kHelp{.command = "rm",
                          .usage = "[OPTION]... IMAGE...",
                          .what =
                              "Removes images, and what was written to them. None is removed if "
                              "one of them is not there,\n"
                              "or is in use. An IMAGE is a path in a mount; with --store, a name.",
                          .examples =
                              "  cowfs rm /mnt/vms/dom1.img\n"
                              "  cowfs rm --force /mnt/vms/dom1.img /mnt/vms/dom2.img\n"
                              "  cowfs rm --store /srv/base.img.cowfs dom3.img\n"};

void remove_in_mount(const Arguments& images, bool force) {
  std::vector<ImagePath> paths;
  for (const std::string& image : images) {
    paths.push_back(image_in_mount(image));
    status_of(paths.back());
    if (!force) require_unused(paths.back(), "is not removed");
  }
  for (const ImagePath& path : paths) {
    if (::unlink(path.path.c_str()) != 0) throw Error(errno, path.path);
  }
}

void remove_in_store(const std::string& directory, const Arguments& names) {
  const std::unique_ptr<Store> store = open_store(directory, "rm");
  for (const std::string& name : names) {
    check_name(name);
    if (store->find(name) == nullptr) throw Error(ENOENT, "image " + name);
  }
  for (const std::string& name : names) store->remove(name);
  close_store(*store);
}

}  // namespace

int run_rm(const Arguments& arguments) {
  Arguments images;
  std::optional<std::string> store;
  bool force = false;
  CommandLine line(kHelp);
  line.arguments("IMAGE", images, "the images to remove")->required();
  line.flag("--force", force, "also remove what is in use; its users keep it until they close it");
  line.option("--store", store, "DIR", "remove them from this store, which is not mounted");
  if (!line.parse(arguments)) return kDone;

  if (store) {
    remove_in_store(*store, images);
  } else {
    remove_in_mount(images, force);
  }
  return kDone;
}

}  // namespace cowfs
