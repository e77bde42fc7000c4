#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <set>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/owner.h"
#include "cmd/sizes.h"
#include "cmd/target.h"
#include "store/error.h"
#include "store/names.h"

namespace cowfs {
namespace {

constexpr HelpTexts kCreateHelp{
    .command = "create",
    .usage = "[OPTION]... IMAGE...",
    .what =
        "Makes images of the base, at once and at any size: their content is the base's, and "
        "zeros\n"
        "behind its end. An IMAGE is a path in a mount; with --store, a name.",
    .examples =
        "  cowfs create /mnt/vms/dom1.img\n"
        "  cowfs create --size 20G --owner libvirt-qemu --mode 0600 /mnt/vms/dom2.img\n"
        "  cowfs create --store /srv/base.img.cowfs dom3.img\n"};

struct Wishes {
  std::optional<uint64_t> size;
  std::optional<Owner> owner;
  std::optional<mode_t> mode;
};

void require(int result, const std::string& what) {
  if (result != 0) throw Error{errno, what};
}

[[noreturn]] void refuse_repeated(const std::string& image) {
  throw Error::with_message(EEXIST, image + ": is named twice");
}

void create_in_mount(const ImagePath& image, const Wishes& wishes) {
  const char* path = image.path.c_str();
  // With mknod(2) an image of the base is born, and never over one that is there.
  require(::mknod(path, S_IFREG | wishes.mode.value_or(0666), 0), image.path);
  try {
    if (wishes.size) {
      require(::truncate(path, static_cast<off_t>(*wishes.size)), "set the size of " + image.path);
    }
    if (wishes.owner) {
      const gid_t group = wishes.owner->gid.value_or(static_cast<gid_t>(-1));
      require(::lchown(path, wishes.owner->uid, group), "set the owner of " + image.path);
    }
    if (wishes.mode) require(::chmod(path, *wishes.mode), "set the mode of " + image.path);
  } catch (const Error&) {
    ::unlink(path);
    throw;
  }
}

void create_in_store(const std::string& directory, const Arguments& names, const Wishes& wishes) {
  const std::unique_ptr<Store> store = open_store(directory, "create", Needs::base);
  const mode_t mask = ::umask(0);
  ::umask(mask);
  for (const std::string& name : names) {
    if (store->find(name) != nullptr) throw Error(EEXIST, "image " + name);
  }
  for (const std::string& name : names) {
    Store::NewImage image;
    image.name = name;
    image.size = wishes.size;
    image.mode = wishes.mode.value_or(0666 & ~mask);
    image.uid = wishes.owner ? wishes.owner->uid : ::geteuid();
    image.gid = wishes.owner && wishes.owner->gid ? *wishes.owner->gid : ::getegid();
    store->create(image);
  }
  close_store(*store);
}

Wishes parse_wishes(const std::optional<std::string>& size, const std::optional<std::string>& owner,
                    const std::optional<std::string>& mode) {
  Wishes wishes;
  if (size) wishes.size = parse_image_size(*size);
  if (owner) wishes.owner = parse_owner(*owner);
  if (mode) wishes.mode = parse_mode(*mode);
  return wishes;
}

}  // namespace

int run_create(const Arguments& arguments) {
  Arguments images;
  std::optional<std::string> size;
  std::optional<std::string> owner;
  std::optional<std::string> mode;
  std::optional<std::string> store;
  CommandLine line(kCreateHelp);
  line.arguments("IMAGE", images, "the new images", CommandLine::Needed::yes);
  line.option("--size", size, "SIZE",
              "virtual size: bytes, or with K, M, G, T; default: the base's");
  line.option("--owner", owner, "USER[:GROUP]", "owner, by name or number; default: you");
  line.option("--mode", mode, "MODE", "permission bits in octal; default: 0666 less your umask");
  line.option("--store", store, "DIR", "make them in this store, which is not mounted");
  if (!line.parse(arguments)) return kDone;

  const Wishes wishes = parse_wishes(size, owner, mode);
  // Whatever is wrong with a name is found before the first image is made.
  if (store) {
    std::set<std::string> names;
    for (const std::string& name : images) {
      check_name(name);
      if (!names.insert(name).second) refuse_repeated(name);
    }
    create_in_store(*store, images, wishes);
    return kDone;
  }
  std::vector<ImagePath> paths;
  std::set<std::pair<uint64_t, std::string>> keys;
  for (const std::string& image : images) {
    const ImagePath& path = paths.emplace_back(image_in_mount(image));
    if (!keys.insert(path.key()).second) refuse_repeated(image);
    struct stat status {};
    if (::lstat(path.path.c_str(), &status) == 0) throw Error(EEXIST, path.path);
  }
  for (const ImagePath& path : paths) create_in_mount(path, wishes);
  return kDone;
}

}  // namespace cowfs
