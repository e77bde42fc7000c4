#include <unistd.h>

#include <cerrno>
#include <map>
#include <set>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/target.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr HelpTexts kRmHelp{
    .command = "rm",
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
  std::map<std::pair<uint64_t, std::string>, ImagePath> paths;  // what is named twice goes once
  for (const std::string& image : images) {
    const ImagePath path = image_in_mount(image);
    if (!paths.emplace(path.key(), path).second) continue;
    status_of(path);
    if (force) continue;
    require_goes_on(path, "is not removed");
    require_unused(path, "is not removed");
  }
  for (const auto& [key, path] : paths) {
    // The kernel would wait for them, with the directory locked.
    if (force && waits_for_space(path)) end_waiting(path);
    if (::unlink(path.path.c_str()) != 0) throw_failure(path, errno);
  }
}

void remove_in_store(const std::string& directory, const Arguments& images) {
  const std::set<std::string> names(images.begin(), images.end());
  const std::unique_ptr<Store> store = open_store(directory, "rm", Needs::names);
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
  CommandLine line(kRmHelp);
  line.arguments("IMAGE", images, "the images to remove", CommandLine::Needed::yes);
  line.flag("--force", force,
            "also remove what is in use, and end its writes that wait for space; its users keep it "
            "until they close it");
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
