#include "tests/crash/faults.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "store/error.h"
#include "tests/crash/disk.h"

namespace cowfs::crash {

std::string Fault::text() const {
  return (syncs ? "sync " : "call ") + std::to_string(call) +
         (lasting ? " and all later ones: " : ": ") +
         (code == 0 ? "half of it is done" : error_text(code));
}

void Faults::arm(const Fault& fault) {
  fault_ = fault;
  calls_ = 0;
  delivered_ = false;
  armed_ = true;
}

std::optional<int> Faults::apply(FileCall& call) {
  if (!armed_ || !can_fail(call) || !below_directory(call)) return std::nullopt;
  const uint64_t number = ++calls_;
  if (fault_.lasting ? number < fault_.call : number != fault_.call) return std::nullopt;
  delivered_ = true;
  if (fault_.code != 0) return fault_.code;
  // It ends where a sector does, wherever it begins: what ends half way need not leave all old or
  // all new there.
  const uint64_t begin = call.positioned ? call.offset : 0;
  const uint64_t end = (begin + call.length / 2) / kSector * kSector;
  if (end > begin) call.length = end - begin;
  return std::nullopt;
}

bool Faults::can_fail(const FileCall& call) const {
  using Kind = FileCall::Kind;
  if (fault_.syncs) return call.kind == Kind::sync;
  const bool makes = call.kind == Kind::open && (call.flags & O_CREAT) != 0;
  switch (fault_.code) {
    case 0:
      return call.kind == Kind::read || call.kind == Kind::write;
    case EMFILE:
      return call.kind == Kind::open;
    case ENOMEM:
      return call.kind == Kind::open || call.kind == Kind::allocate || call.kind == Kind::clone;
    case ENOSPC:
      return makes || (call.kind != Kind::open && call.kind != Kind::read &&
                       call.kind != Kind::unlink && call.kind != Kind::rmdir);
    default:
      return true;
  }
}

bool Faults::below_directory(const FileCall& call) const {
  if (call.fd < 0) return std::string_view(call.path).starts_with(directory_);
  std::array<char, 512> path{};
  const std::string link = "/proc/self/fd/" + std::to_string(call.fd);
  const ssize_t length = ::readlink(link.c_str(), path.data(), path.size());
  return length > 0 &&
         std::string_view(path.data(), static_cast<size_t>(length)).starts_with(directory_);
}

}  // namespace cowfs::crash
