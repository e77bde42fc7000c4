// A FUSE file system that calls itself fuse.sshfs, for a test that cannot count on a network: an
// empty directory that lets folders be made and forgets them. usage: fake_network_fs DIRECTORY;
// stays in the foreground.

#define FUSE_USE_VERSION 314
#include <fuse.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <initializer_list>

namespace {

int GetAttributes(const char* path, struct stat* status, fuse_file_info* /*file*/) {
  if (std::strcmp(path, "/") != 0) {
    return -ENOENT;
  }
  *status = {};
  status->st_mode = S_IFDIR | 0777;
  status->st_nlink = 2;
  return 0;
}

int ReadDirectory(const char* /*path*/, void* buffer, fuse_fill_dir_t fill, off_t /*offset*/,
                  fuse_file_info* /*file*/, fuse_readdir_flags /*flags*/) {
  fill(buffer, ".", nullptr, 0, static_cast<fuse_fill_dir_flags>(0));
  fill(buffer, "..", nullptr, 0, static_cast<fuse_fill_dir_flags>(0));
  return 0;
}

int MakeDirectory(const char* /*path*/, mode_t /*mode*/) { return 0; }

}  // namespace

int main(int argc, char** argv) {
  fuse_operations operations{};
  operations.getattr = GetAttributes;
  operations.readdir = ReadDirectory;
  operations.mkdir = MakeDirectory;
  fuse_args arguments = FUSE_ARGS_INIT(0, nullptr);
  const std::initializer_list<const char*> fixed{argv[0], "-f", "-o",
                                                 "subtype=sshfs,fsname=host:/share,allow_other"};
  for (const char* const argument : fixed) {
    fuse_opt_add_arg(&arguments, argument);
  }
  fuse_opt_add_arg(&arguments, argc == 2 ? argv[1] : "");
  const int status = fuse_main(arguments.argc, arguments.argv, &operations, nullptr);
  fuse_opt_free_args(&arguments);
  return status;
}
