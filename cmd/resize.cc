#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/sizes.h"
#include "cmd/target.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr HelpTexts kResizeHelp{
    .command = "resize",
    .usage = "[OPTION]... IMAGE SIZE",
    .what =
        "Changes the virtual size of an image. What a smaller size cuts off is lost; the new part "
        "of a\n"
        "larger one reads as zeros. An IMAGE is a path in a mount; with --store, a name. A loop\n"
        "device over a grown image is told with `losetup -c`.",
    .examples =
        "  cowfs resize /mnt/vms/dom1.img 20G\n"
        "  cowfs resize --store /srv/base.img.cowfs dom1.img 1.5T\n"};

void resize_in_mount(const std::string& path, uint64_t size, bool force) {
  const ImagePath image = image_in_mount(path);
  const auto old_size = static_cast<uint64_t>(status_of(image).st_size);
  require_goes_on(image, "is not resized");
  if (size < old_size && !force) require_unused(image, "is not made smaller");
  // Through the kernel, which keeps its own idea of the size.
  if (::truncate(image.path.c_str(), static_cast<off_t>(size)) != 0) throw_failure(image, errno);
}

void resize_in_store(const std::string& directory, const std::string& name, uint64_t size) {
  check_name(name);
  const std::unique_ptr<Store> store = open_store(directory, "resize", Needs::base);
  const std::shared_ptr<Image> image = store->find(name);
  if (image == nullptr) throw Error(ENOENT, "image " + name);
  image->use()->resize(size);
  close_store(*store);
}

}  // namespace

int run_resize(const Arguments& arguments) {
  std::string image;
  std::string size_text;
  std::optional<std::string> store;
  bool force = false;
  CommandLine line(kResizeHelp);
  line.argument("IMAGE", image, "the image");
  line.argument("SIZE", size_text, "its new size: bytes, or with K, M, G, T (powers of 1024)");
  line.flag("--force", force, "make it smaller also while it is in use");
  line.option("--store", store, "DIR", "resize it in this store, which is not mounted");
  if (!line.parse(arguments)) return kDone;

  const uint64_t size = parse_image_size(size_text);
  if (store) {
    resize_in_store(*store, image, size);
  } else {
    resize_in_mount(image, size, force);
  }
  return kDone;
}

}  // namespace cowfs
