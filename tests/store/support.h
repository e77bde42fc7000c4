#pragma once

#include <gtest/gtest.h>
#include <spdlog/fwd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "store/error.h"
#include "store/file.h"
#include "store/store.h"

namespace cowfs::test {

/// Compared at once: byte by byte it is what ThreadSanitizer spends most of its time with.
struct Bytes : std::vector<std::byte> {
  using std::vector<std::byte>::vector;
  explicit(false) Bytes(std::vector<std::byte> bytes) : vector(std::move(bytes)) {}
  friend bool operator==(const Bytes& left, const Bytes& right) {
    return left.size() == right.size() &&
           (left.empty() || std::memcmp(left.data(), right.data(), left.size()) == 0);
  }
  friend bool operator==(const Bytes& left, const std::vector<std::byte>& right) {
    return left == Bytes(right);
  }
};

/// A directory that goes away with everything in it.
class TempDir {
 public:
  TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir();
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// Logs nothing; to stderr if the environment has COWFS_LOG.
std::shared_ptr<spdlog::logger> test_log();

/// Bytes that depend on the seed and on the place, so that misplaced ones are seen.
Bytes pattern(uint64_t seed, size_t size);
Bytes filled(size_t size, int value);

void write_file(const std::string& path, std::span<const std::byte> content);
Bytes read_file(const std::string& path);
/// Bytes of space that the file takes.
uint64_t allocated(const std::string& path);
/// The names in a directory, sorted.
std::vector<std::string> names_in(const std::string& directory);

/// The Error that `action` throws; fails the test if there is none.
template <typename Action>
Error error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error::with_message(1, "nothing was thrown");
}

/// Whether qemu-img and qemu-io are installed (qemu-utils).
bool has_qemu();
/// The disk in a qcow2 file as QEMU shows it. Fails the test if `qemu-img check` finds something
/// wrong with the file.
Bytes disk_for_qemu(const std::string& path);
/// That QEMU shows just these bytes, but for the rest of the last sector.
void expect_for_qemu(const std::string& path, const Bytes& wanted);

/// A fault hook that tests change while files are in use. Thread-safe.
class Faults {
 public:
  using Handler = std::function<int(const std::string& path, FileOperation operation,
                                    uint64_t offset, uint64_t length)>;

  [[nodiscard]] FaultHook hook();
  void set(Handler handler);
  void clear() { set(nullptr); }

 private:
  std::mutex mutex_;
  std::shared_ptr<const Handler> handler_;
};

/// The policy that COWFS_TEST_POLICY names, or the default.
std::string policy_of_environment();

/// A base and a store over it in a temporary directory.
class StoreFixture : public ::testing::Test {
 protected:
  static constexpr uint64_t kChunk = 4096;

  /// The store's thread goes before what the test and classes derived from this lend to the hook.
  void TearDown() override {
    faults_.clear();
    store_.reset();
  }

  /// Makes the base; call it before open.
  void make_base(const Bytes& content) {
    base_content_ = content;
    write_file(base_path(), content);
  }
  [[nodiscard]] std::string base_path() const { return directory_ / "base.img"; }
  [[nodiscard]] std::string store_path() const { return directory_ / "base.img.cowfs"; }
  [[nodiscard]] std::string catalog_path() const { return store_path() + "/catalog.db"; }

  [[nodiscard]] Store::Options options();
  /// Opens the store, and makes it if need be.
  Store& open();
  /// Ends the store as a server that is killed would: nothing is flushed.
  void crash() { store_.reset(); }
  Store& reopen_after_crash() {
    crash();
    return open();
  }
  Store& reopen() {
    EXPECT_TRUE(store_->close());
    return reopen_after_crash();
  }
  /// The base's content with `bytes` laid over it at `offset`.
  [[nodiscard]] Bytes over_base(uint64_t offset, const Bytes& bytes) const;
  /// The image in use; makes it if there is none.
  Image::Use use(const std::string& name, bool empty = false);
  [[nodiscard]] std::string pool_path() const { return store_path() + "/pool"; }
  /// What the catalog says of its first `count` chunks, after a flush.
  [[nodiscard]] std::string map(const Image::Use& image, uint64_t count = 18) const;

  TempDir directory_;
  Bytes base_content_;
  Faults faults_;
  std::optional<uint32_t> chunk_size_ = kChunk;
  /// COWFS_TEST_POLICY has another: suites that hold for all policies are run for each.
  std::string policy_ = policy_of_environment();
  uint64_t pool_size_ = 48 << 20;  // small, since tests look at all of it
  std::unique_ptr<Store> store_;
};

/// SQL that makes the table `store` as catalogs had it before it asked for what is fixed.
extern const char* const kStoreWithoutConditions;

/// SQL that makes a catalog of version 3 one of version 2, as the program before wrote it.
extern const char* const kBackToVersion2;

/// All of the image, or the part.
Bytes content(Image& image);
Bytes content(Image& image, uint64_t offset, size_t length);
void write(Image& image, uint64_t offset, const Bytes& bytes);

/// The image's map as the catalog has it on disk, read by another connection: one character a chunk
/// ('.' absent, 'p' present, 'z' zero), `count` of them from the first.
std::string map_on_disk(const std::string& catalog_path, uint64_t layer, uint64_t count);

/// Runs SQL on a catalog that nobody has open, or that is to be spoiled.
void run_sql(const std::string& catalog_path, const std::string& sql);

/// A seed from COWFS_SEED, or a new one.
uint64_t random_seed();

}  // namespace cowfs::test
