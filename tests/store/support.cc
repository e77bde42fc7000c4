#include "tests/store/support.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/null_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <stdlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>

#include "store/catalog.h"
#include "store/chunk_map.h"
#include "store/db.h"
#include "store/layout.h"
#include "store/qcow2_format.h"
#include "store/slot_map.h"

namespace cowfs::test {

namespace fs = std::filesystem;

TempDir::TempDir() {
  // Memory by default: thousands of syncs take their time on a disk.
  const char* chosen = std::getenv("COWFS_TEST_DIRECTORY");
  const std::string parent = chosen != nullptr              ? chosen
                             : fs::is_directory("/dev/shm") ? "/dev/shm"
                                                            : fs::temp_directory_path();
  std::string name = parent + "/cowfs-test-XXXXXX";
  if (::mkdtemp(name.data()) == nullptr) throw Error(errno, name);
  path_ = name;
}

TempDir::~TempDir() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::shared_ptr<spdlog::logger> test_log() {
  if (std::getenv("COWFS_LOG") != nullptr) {
    return std::make_shared<spdlog::logger>("test",
                                            std::make_shared<spdlog::sinks::stderr_sink_mt>());
  }
  return std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::null_sink_mt>());
}

Bytes pattern(uint64_t seed, size_t size) {
  Bytes bytes(size);
  uint64_t state = (seed + 1) * 0x9e3779b97f4a7c15;
  for (size_t i = 0; i < size; i += 8) {
    state ^= state << 13U;
    state ^= state >> 7U;
    state ^= state << 17U;
    std::memcpy(bytes.data() + i, &state, std::min<size_t>(8, size - i));
  }
  return bytes;
}

Bytes filled(size_t size, int value) { return Bytes(size, static_cast<std::byte>(value)); }

void write_file(const std::string& path, std::span<const std::byte> content) {
  const File file(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
  file.write(content, 0);
}

Bytes read_file(const std::string& path) {
  const File file(path, O_RDONLY);
  Bytes bytes(static_cast<size_t>(file.size()));
  file.read_exactly(bytes, 0);
  return bytes;
}

uint64_t allocated(const std::string& path) {
  return static_cast<uint64_t>(File(path, O_RDONLY).status().st_blocks) * 512;
}

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

FaultHook Faults::hook() {
  return
      [this](const std::string& path, FileOperation operation, uint64_t offset, uint64_t length) {
        std::shared_ptr<const Handler> handler;
        {
          const std::lock_guard lock(mutex_);
          handler = handler_;
        }
        return handler != nullptr && *handler ? (*handler)(path, operation, offset, length) : 0;
      };
}

void Faults::set(Handler handler) {
  auto next = std::make_shared<const Handler>(std::move(handler));
  const std::lock_guard lock(mutex_);
  handler_ = std::move(next);
}

std::string policy_of_environment() {
  const char* const policy = std::getenv("COWFS_TEST_POLICY");
  return policy != nullptr ? policy : "sparse";
}

Store::Options StoreFixture::options() {
  Store::Options options;
  options.directory = store_path();
  options.base_path = base_path();
  options.chunk_size = chunk_size_;
  options.policy = policy_;
  if (policy_ == "pool") options.pool_size = pool_size_;
  options.create = true;
  options.log = test_log();
  options.fault_hook = faults_.hook();
  return options;
}

Store& StoreFixture::open() {
  store_ = std::make_unique<Store>(options());
  return *store_;
}

Bytes StoreFixture::over_base(uint64_t offset, const Bytes& bytes) const {
  Bytes result = base_content_;
  if (result.size() < offset + bytes.size()) result.resize(offset + bytes.size());
  std::copy(bytes.begin(), bytes.end(), result.begin() + static_cast<int64_t>(offset));
  return result;
}

Image::Use StoreFixture::use(const std::string& name, bool empty) {
  std::shared_ptr<Image> image = store_->find(name);
  if (image == nullptr) {
    Store::NewImage wanted;
    wanted.name = name;
    wanted.empty = empty;
    image = store_->create(wanted);
  }
  return image->use();
}

std::string StoreFixture::map(const Image::Use& image, uint64_t count) const {
  image->flush();
  return map_on_disk(catalog_path(), image->layer_id(), count);
}

Bytes content(Image& image) { return content(image, 0, static_cast<size_t>(image.size())); }

Bytes content(Image& image, uint64_t offset, size_t length) {
  Bytes bytes(length);
  bytes.resize(image.read(bytes, offset));
  return bytes;
}

void write(Image& image, uint64_t offset, const Bytes& bytes) { image.write(bytes, offset); }

namespace {

std::string qcow2_map_on_disk(const std::string& path, uint64_t count) {
  const File file(path, O_RDONLY);
  qcow2::HeaderOnDisk header;
  file.read_exactly(std::as_writable_bytes(std::span(&header, 1)), 0);
  const auto entry_at = [&](uint64_t offset) -> uint64_t {
    BigEndian<uint64_t> entry;
    file.read_exactly(std::as_writable_bytes(std::span(&entry, 1)), offset);
    return entry;
  };
  const unsigned table_bits = header.cluster_bits - 3;
  std::string text(count, '.');
  for (uint64_t chunk = 0; chunk < count; ++chunk) {
    const uint64_t table = chunk >> table_bits;
    if (table >= header.l1_entries) break;
    const uint64_t l2 = entry_at(header.l1_offset + table * 8) & qcow2::kOffsetMask;
    if (l2 == 0) continue;
    const uint64_t entry = entry_at(l2 + (chunk & ((uint64_t{1} << table_bits) - 1)) * 8);
    if (entry == 0) continue;
    text[chunk] = (entry & qcow2::kZeroFlag) != 0 ? 'z' : 'p';
  }
  return text;
}

}  // namespace

bool has_qemu() { return std::system("command -v qemu-img qemu-io >/dev/null 2>&1") == 0; }

Bytes disk_for_qemu(const std::string& path) {
  const TempDir scratch;
  const std::string log = scratch / "log";
  const std::string raw = scratch / "raw";
  const std::string command = "{ qemu-img check '" + path + "' && qemu-img convert -O raw '" +
                              path + "' '" + raw + "'; } >'" + log + "' 2>&1";
  if (std::system(command.c_str()) != 0) {
    const Bytes text = read_file(log);
    ADD_FAILURE() << path << ": "
                  << std::string(reinterpret_cast<const char*>(text.data()), text.size());
    return {};
  }
  return read_file(raw);
}

void expect_for_qemu(const std::string& path, const Bytes& wanted) {
  const Bytes seen = disk_for_qemu(path);
  ASSERT_EQ(seen.size(), (wanted.size() + 511) / 512 * 512) << path;
  if (wanted == Bytes(seen.begin(), seen.begin() + static_cast<std::ptrdiff_t>(wanted.size()))) {
    return;
  }
  const auto differs = std::mismatch(wanted.begin(), wanted.end(), seen.begin());
  EXPECT_EQ(differs.first - wanted.begin(), static_cast<std::ptrdiff_t>(wanted.size()))
      << path << ": the first byte that differs";
}

std::string map_on_disk(const std::string& catalog_path, uint64_t layer, uint64_t count) {
  std::string text(count, '.');
  Catalog catalog(catalog_path, Database::Mode::read_only);
  const Policy& policy = find_policy(catalog.store().policy);
  if (policy.map_in_file) {
    return qcow2_map_on_disk(std::filesystem::path(catalog_path).parent_path() / "layers" /
                                 layer_file_name(layer, policy.file_suffix),
                             count);
  }
  if (policy.map_bits == SlotMap::kBits) {
    const auto any = [](const MapBits&) { return true; };
    catalog.load_pages(layer, 0, count / SlotMap::kChunksInPage + 1, any,
                       [&](uint64_t page, const MapBits& bits) {
                         for (uint64_t i = 0; i < SlotMap::kChunksInPage; ++i) {
                           const uint64_t chunk = page * SlotMap::kChunksInPage + i;
                           if (chunk >= count) break;
                           const ChunkState state = SlotMap::state_of(SlotMap::entry(bits, i));
                           text[chunk] = ".pz"[static_cast<size_t>(state)];
                         }
                       });
    return text;
  }
  catalog.load_pages(layer, 0, count / kChunksPerPage + 1, valid,
                     [&](uint64_t page, const MapBits& bits) {
                       for (uint64_t i = 0; i < kChunksPerPage; ++i) {
                         const uint64_t chunk = page * kChunksPerPage + i;
                         if (chunk >= count) break;
                         const uint64_t state = (bits[i / 32] >> (2 * (i % 32))) & 3;
                         text[chunk] = ".pz?"[state];
                       }
                     });
  return text;
}

const char* const kBackToVersion2 =
    "DROP TABLE backing; ALTER TABLE base DROP COLUMN format; ALTER TABLE base DROP COLUMN "
    "snapshot; ALTER TABLE base DROP COLUMN virtual_size; ALTER TABLE layer DROP COLUMN "
    "own_chunks; DROP TABLE pool; DROP TABLE pool_page; PRAGMA user_version = 2;";

const char* const kStoreWithoutConditions =
    "CREATE TABLE plain (id INTEGER PRIMARY KEY CHECK (id = 1), uuid TEXT NOT NULL, chunk_size "
    "INTEGER NOT NULL, policy TEXT NOT NULL, created_ns INTEGER NOT NULL); INSERT INTO plain "
    "SELECT "
    "* FROM store; DROP TABLE store; ALTER TABLE plain RENAME TO store; ";

void run_sql(const std::string& catalog_path, const std::string& sql) {
  Database(catalog_path, Database::Mode::read_write).execute(sql);
}

uint64_t random_seed() {
  const char* text = std::getenv("COWFS_SEED");
  if (text != nullptr) return std::strtoull(text, nullptr, 0);
  return std::random_device()();
}

}  // namespace cowfs::test
