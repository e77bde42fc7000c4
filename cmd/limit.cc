#include <cerrno>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/facts.h"
#include "cmd/sizes.h"
#include "cmd/target.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr HelpTexts kLimitHelp{
    .command = "limit",
    .usage = "[OPTION]... IMAGE SIZE|none",
    .what =
        "Bounds the space that an image may take of its own, so that one machine cannot fill the\n"
        "disk of all. A write that needs more is treated as on a full disk, of that image alone.\n"
        "An IMAGE is a path in a mount; with --store, a name.",
    .examples =
        "  cowfs limit /mnt/vms/dom1.img 10G\n"
        "  cowfs limit /mnt/vms/dom1.img none\n"};

void limit_in_mount(const std::string& path, std::optional<uint64_t> bytes) {
  const ImagePath image = image_in_mount(path);
  static_cast<void>(status_of(image));
  try {
    ask_about_image(
        image.mount, image.name,
        {{"ask", "set_space_limit"}, {"bytes", bytes ? nlohmann::json(*bytes) : nlohmann::json()}});
  } catch (const Error& error) {
    if (error.code() != EPERM) throw;
    throw Error::with_message(
        EPERM, path + ": only root and the user that mounted it may change the limit");
  }
}

void limit_in_store(const std::string& directory, const std::string& name,
                    std::optional<uint64_t> bytes) {
  check_name(name);
  const std::unique_ptr<Store> store = open_store(directory, "limit", Needs::names);
  const std::shared_ptr<Image> image = store->find(name);
  if (image == nullptr) throw Error(ENOENT, "image " + name);
  image->set_space_limit(bytes);
  close_store(*store);
}

}  // namespace

int run_limit(const Arguments& arguments) {
  std::string image;
  std::string size_text;
  std::optional<std::string> store;
  CommandLine line(kLimitHelp);
  line.argument("IMAGE", image, "the image");
  line.argument("SIZE", size_text, "the most that it may take: bytes, or with K, M, G, T; or none");
  line.option("--store", store, "DIR", "limit it in this store, which is not mounted");
  if (!line.parse(arguments)) return kDone;

  std::optional<uint64_t> bytes;
  if (size_text != "none") bytes = parse_size(size_text);
  if (store) {
    limit_in_store(*store, image, bytes);
  } else {
    limit_in_mount(image, bytes);
  }
  return kDone;
}

}  // namespace cowfs
