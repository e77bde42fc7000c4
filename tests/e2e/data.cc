#include "tests/e2e/data.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <random>
#include <sstream>
#include <system_error>
#include <utility>

namespace cowfs::e2e {
namespace {

[[noreturn]] void ThrowErrno(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

void Check(bool succeeded, const std::string& what) {
  if (!succeeded) {
    ThrowErrno(what);
  }
}

}  // namespace

File::File(const Path& path, int flags, mode_t mode)
    : fd_(open(path.c_str(), flags | O_CLOEXEC, mode)) {
  Check(fd_ >= 0, "open " + path.string());
}

File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

File::~File() {
  if (fd_ >= 0) {
    close(fd_);
  }
}

void File::Close() { Check(close(std::exchange(fd_, -1)) == 0, "close"); }

void File::Write(uint64_t offset, const Bytes& bytes) const {
  uint64_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count =
        pwrite(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    Check(count > 0, "pwrite");
    done += static_cast<uint64_t>(count);
  }
}

Bytes File::Read(uint64_t offset, uint64_t length) const {
  Bytes bytes(length, '\0');
  uint64_t done = 0;
  while (done < length) {
    const ssize_t count =
        pread(fd_, bytes.data() + done, length - done, static_cast<off_t>(offset + done));
    Check(count >= 0, "pread");
    if (count == 0) {
      break;
    }
    done += static_cast<uint64_t>(count);
  }
  bytes.resize(done);
  return bytes;
}

void File::Sync() const { Check(fsync(fd_) == 0, "fsync"); }

void File::Truncate(uint64_t size) const {
  Check(ftruncate(fd_, static_cast<off_t>(size)) == 0, "ftruncate");
}

void File::Allocate(int mode, uint64_t offset, uint64_t length) const {
  Check(fallocate(fd_, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0,
        "fallocate");
}

void File::DropPages() const {
  Sync();
  Check(posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED) == 0, "posix_fadvise");
}

struct stat File::Stat() const {
  struct stat status {};
  Check(fstat(fd_, &status) == 0, "fstat");
  return status;
}

DirectBuffer::DirectBuffer(uint64_t size)
    : data_(static_cast<char*>(std::aligned_alloc(4096, (size + 4095) / 4096 * 4096))) {
  Check(data_ != nullptr, "aligned_alloc");
  std::fill_n(data_, size, '\x5a');
}

DirectBuffer::~DirectBuffer() { std::free(data_); }

Bytes RandomBytes(uint64_t size, uint32_t seed) {
  std::mt19937_64 random(seed);
  Bytes bytes(size, '\0');
  for (uint64_t at = 0; at < size; at += sizeof(uint64_t)) {
    const uint64_t value = random() | 0x0101010101010101U;
    const uint64_t count = std::min<uint64_t>(sizeof(value), size - at);
    std::copy_n(reinterpret_cast<const char*>(&value), count, bytes.data() + at);
  }
  return bytes;
}

Bytes Zeros(uint64_t size) { return Bytes(size, '\0'); }

Bytes ReadFile(const Path& path) { return File(path, O_RDONLY).ReadAll(); }

void WriteFile(const Path& path, const Bytes& bytes) {
  File file(path, O_WRONLY | O_CREAT | O_TRUNC);
  file.Write(0, bytes);
  file.Sync();
  file.Close();
}

void WriteSparseFile(const Path& path, const Bytes& bytes) {
  constexpr uint64_t kPiece = 4 * kKiB;
  const Bytes zeros = Zeros(kPiece);
  File file(path, O_WRONLY | O_CREAT | O_TRUNC);
  file.Truncate(bytes.size());
  for (uint64_t at = 0; at < bytes.size(); at += kPiece) {
    const Bytes piece = bytes.substr(at, kPiece);
    if (zeros.compare(0, piece.size(), piece) != 0) {
      file.Write(at, piece);
    }
  }
  file.Sync();
  file.Close();
}

struct stat StatOf(const Path& path) {
  struct stat status {};
  Check(lstat(path.c_str(), &status) == 0, "stat " + path.string());
  return status;
}

uint64_t AllocatedBytes(const Path& path) {
  return static_cast<uint64_t>(StatOf(path).st_blocks) * 512;
}

std::string Sha256(const Path& path) {
  return Must(Execute({"sha256sum", "--", path.string()})).substr(0, 64);
}

testing::AssertionResult Same(const Bytes& expected, const Bytes& actual) {
  if (expected == actual) {
    return testing::AssertionSuccess();
  }
  const uint64_t common = std::min(expected.size(), actual.size());
  const auto difference =
      std::mismatch(expected.begin(),
                    expected.begin() + static_cast<Bytes::difference_type>(common), actual.begin());
  auto result = testing::AssertionFailure();
  result << "expected " << expected.size() << " bytes, got " << actual.size();
  const auto at = static_cast<uint64_t>(difference.first - expected.begin());
  if (at < common) {
    uint64_t different = 0;
    for (uint64_t i = at; i < common; ++i) {
      different += expected[i] != actual[i] ? 1 : 0;
    }
    const auto hex = [](const Bytes& bytes, uint64_t offset) {
      std::ostringstream text;
      for (uint64_t i = offset; i < std::min<uint64_t>(offset + 8, bytes.size()); ++i) {
        text << std::hex << (static_cast<unsigned>(bytes[i]) & 0xffU) << ' ';
      }
      return text.str();
    };
    result << "; first difference at offset " << at << " (" << different
           << " bytes differ): expected " << hex(expected, at) << "got " << hex(actual, at);
  }
  return result;
}

testing::AssertionResult Takes(uint64_t expected, uint64_t actual) {
  if (actual >= expected && actual <= expected + 64 * kKiB) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << "takes " << actual << " bytes instead of " << expected;
}

testing::AssertionResult Holds(const Path& file, const Bytes& expected) {
  testing::AssertionResult result = Same(expected, ReadFile(file));
  if (!result) {
    result << "in " << file;
  }
  return result;
}

testing::AssertionResult Mentions(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << "no \"" << part << "\" in \"" << text << '"';
}

std::string TreeSnapshot(const Path& root) {
  const dev_t device = StatOf(root).st_dev;
  std::vector<std::string> lines;
  const auto describe = [&](const Path& path) {
    const struct stat status = StatOf(path);
    std::ostringstream line;
    line << path.string() << std::oct << " mode " << status.st_mode << std::dec << " inode "
         << status.st_ino << " owner " << status.st_uid << ':' << status.st_gid;
    // Who held a store last is written into its lock also by a mount that comes to nothing.
    const bool is_lock = path.filename() == "lock";
    if (status.st_dev == device && !S_ISDIR(status.st_mode) && !is_lock) {
      line << " size " << status.st_size << " modified " << status.st_mtim.tv_sec << '.'
           << status.st_mtim.tv_nsec;
    }
    if (S_ISREG(status.st_mode) && !is_lock) {
      line << " content " << std::hash<Bytes>()(ReadFile(path));
    }
    lines.push_back(line.str());
  };
  describe(root);
  using Iterator = std::filesystem::recursive_directory_iterator;
  for (auto entry = Iterator(root); entry != Iterator(); ++entry) {
    const bool below = StatOf(entry->path()).st_dev == device;
    if (!below) {
      entry.disable_recursion_pending();
    }
    describe(entry->path());
  }
  std::sort(lines.begin(), lines.end());
  std::string snapshot;
  for (const std::string& line : lines) {
    snapshot += line + '\n';
  }
  return snapshot;
}

void MakeExt4Image(const Path& image, uint64_t size, const Path& tree) {
  File(image, O_WRONLY | O_CREAT | O_TRUNC).Truncate(size);
  Must(Execute({"mkfs.ext4", "-q", "-F", "-d", tree.string(), image.string()}));
}

void MakeXfsImage(const Path& image, uint64_t size) {
  File(image, O_WRONLY | O_CREAT | O_TRUNC).Truncate(size);
  Must(Execute({"mkfs.xfs", "-q", "-f", image.string()}));
}

void MakeTree(const Path& root) {
  std::filesystem::create_directories(root / "etc");
  std::filesystem::create_directories(root / "srv" / "data");
  WriteFile(root / "etc" / "hostname", "golden\n");
  WriteFile(root / "etc" / "motd", "made once, used by many\n");
  for (uint32_t i = 0; i < 8; ++i) {
    WriteFile(root / "srv" / "data" / ("file" + std::to_string(i)), RandomBytes(200 * kKiB + i, i));
  }
}

}  // namespace cowfs::e2e
