#include "store/check_reserve.h"

#include <sys/stat.h>

#include <cerrno>

#include "store/error.h"
#include "store/host_fs.h"
#include "store/reserve.h"

namespace cowfs {

void check_reserve(const std::string& directory, CheckReport& report) {
  const Reserve reserve(directory);
  struct stat status {};
  const bool there = ::lstat(Reserve::path_in(directory).c_str(), &status) == 0;
  if (!there && errno != ENOENT) throw Error{errno, Reserve::path_in(directory)};
  if (there && (!S_ISREG(status.st_mode) || status.st_nlink != 1)) {
    report.add({.severity = Finding::Severity::damage,
                .kind = "reserve",
                .image = "",
                .what = "reserve is no regular file of its own: on a full disk there is no room "
                        "for commits",
                .remedy = "remove it; the next mount makes it anew"});
    return;
  }
  if (reserve.held() >= reserve.size()) return;
  const bool room = space_at(directory).available >= 2 * reserve.size();
  report.add({.severity = Finding::Severity::note,
              .kind = "note",
              .image = "",
              .what = room ? "the reserve for commits on a full disk does not hold its space; the "
                             "next mount sees to it"
                           : "the reserve for commits on a full disk does not hold its space: the "
                             "disk is full, or nearly",
              .remedy = ""});
}

}  // namespace cowfs
