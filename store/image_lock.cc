// Each right to an image file has a byte at 100 and up, which who makes use of the right locks for
// reading, and one at 200 and up, which who does not let others have it locks likewise. Whether
// another has a byte is asked for with F_OFD_GETLK. The bytes need not be there.

#include "store/image_lock.h"

#include <fcntl.h>

#include <array>
#include <cerrno>

#include "store/error.h"

namespace cowfs {
namespace {

constexpr off_t kHas = 100;
constexpr off_t kDoesNotShare = 200;
constexpr std::array<off_t, 2> kRights{1, 3};  // write, resize

struct flock byte_lock(off_t byte, short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;
}

bool is_taken(const File& file, off_t byte) {
  struct flock lock = byte_lock(byte, F_WRLCK);
  // Where the host has no such locks nobody has taken one.
  if (::fcntl(file.fd(), F_OFD_GETLK, &lock) != 0) return false;
  return lock.l_type != F_UNLCK;
}

}  // namespace

bool is_image_locked(const File& file) {
  for (const off_t right : kRights) {
    if (is_taken(file, kHas + right)) return true;
  }
  return false;
}

bool try_image_lock(const File& file) {
  for (const off_t first : {kHas, kDoesNotShare}) {
    for (const off_t right : kRights) {
      struct flock lock = byte_lock(first + right, F_RDLCK);
      if (::fcntl(file.fd(), F_OFD_SETLK, &lock) != 0 && (errno == EAGAIN || errno == EACCES)) {
        return false;
      }
    }
  }
  for (const off_t right : kRights) {
    if (is_taken(file, kHas + right) || is_taken(file, kDoesNotShare + right)) return false;
  }
  return true;
}

}  // namespace cowfs
