// Random operations on the images of a store against plain byte vectors
//
// The model keeps for each image the bytes that it has to show, and for each sector every value
// that it had since the last flush: after a crash any of these may be there and nothing else (I4).
// A crash is a power cut: each sector of a CoW file is taken either as it was when the file was
// synced last or as it is now, and a file that was never synced may be missing. The catalog is as
// it was committed.
//
// The seed is printed on failure; COWFS_SEED sets it, COWFS_MODEL_SECONDS how long each
// configuration runs.

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <random>

#include "store/image.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

constexpr size_t kSector = 512;
using Sector = std::array<std::byte, kSector>;

/// What the disk is sure to have: CoW files as they were when they were synced last.
class Disk {
 public:
  /// Called before a sync: what the file holds now is durable when it returns.
  void note_sync(const std::string& path) {
    const std::lock_guard lock(mutex_);
    synced_[path] = read_file(path);
  }

  /// Makes the files in `directory` what a power cut may leave of them.
  void cut_power(const std::string& directory, std::mt19937_64& random) {
    const std::lock_guard lock(mutex_);
    for (const std::string& name : names_in(directory)) {
      const std::string path = directory + "/" + name;
      const auto durable = synced_.find(path);
      if (durable == synced_.end() && random() % 2 == 0) {
        remove_file(path);
        continue;
      }
      cut_file(path, durable == synced_.end() ? Bytes() : durable->second, random);
    }
  }
  /// Of one that was synced before.
  void cut_power_of(const std::string& path, std::mt19937_64& random) {
    const std::lock_guard lock(mutex_);
    cut_file(path, synced_.at(path), random);
  }

 private:
  void cut_file(const std::string& path, const Bytes& old, std::mt19937_64& random) {
    Bytes now = read_file(path);
    now.resize(std::max(now.size(), old.size()));
    const File file(path, O_RDWR);
    for (size_t at = 0; at < now.size(); at += kSector) {
      const size_t end = std::min(at + kSector, now.size());
      Bytes before(end - at);
      for (size_t i = at; i < end && i < old.size(); ++i) before[i - at] = old[i];
      if (std::equal(before.begin(), before.end(), now.begin() + static_cast<int64_t>(at)))
        continue;
      if (random() % 2 == 0) continue;
      std::copy(before.begin(), before.end(), now.begin() + static_cast<int64_t>(at));
      file.write(before, at);
    }
    synced_[path] = std::move(now);
  }

  std::mutex mutex_;
  std::map<std::string, Bytes> synced_;
};

struct ModelImage {
  explicit ModelImage(Bytes content) : bytes(std::move(content)), sizes{bytes.size()} {}

  Bytes bytes;
  std::map<size_t, std::vector<Sector>> history;  ///< earlier values since the last flush
  std::vector<size_t> sizes;                      ///< since the last flush, the present one last

  [[nodiscard]] Sector sector(size_t index) const {
    Sector value{};
    const size_t at = index * kSector;
    if (at < bytes.size()) {
      std::memcpy(value.data(), bytes.data() + at, std::min(kSector, bytes.size() - at));
    }
    return value;
  }
  /// Before [offset, offset + length) changes.
  void remember(size_t offset, size_t length) {
    if (length == 0) return;
    for (size_t i = offset / kSector; i <= (offset + length - 1) / kSector; ++i) {
      const Sector value = sector(i);
      auto& values = history[i];
      if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
    }
  }
  void resize(size_t size) {
    if (size < bytes.size()) remember(size, bytes.size() - size);
    if (size > bytes.size()) remember(bytes.size(), size - bytes.size());
    bytes.resize(size);
    sizes.push_back(size);
  }
  void write(size_t offset, const Bytes& data) {
    if (data.empty()) return;
    if (offset + data.size() > bytes.size()) resize(offset + data.size());
    remember(offset, data.size());
    std::copy(data.begin(), data.end(), bytes.begin() + static_cast<int64_t>(offset));
  }
  void flushed() {
    history.clear();
    sizes = {bytes.size()};
  }
};

struct Configuration {
  const char* name;
  uint32_t chunk_size;
  size_t base_size;
  bool base_has_holes;
  size_t most;  ///< bytes that an image may have
};

class ModelTest : public StoreFixture, public ::testing::WithParamInterface<Configuration> {
 protected:
  ModelTest() : random_(seed_) {
    chunk_size_ = config().chunk_size;
    pool_size_ = 12 * std::max<size_t>(config().most, config().chunk_size);
    Bytes base = pattern(seed_, config().base_size);
    if (config().base_has_holes) {
      for (size_t at = 0; at < base.size(); at += 40'960) {
        const size_t end = std::min(base.size(), at + 12'288);
        std::fill(base.begin() + static_cast<int64_t>(at), base.begin() + static_cast<int64_t>(end),
                  std::byte{0});
      }
    }
    make_base(base);
    if (config().base_has_holes) {
      const File file(base_path(), O_RDWR);
      for (size_t at = 0; at < base.size(); at += 40'960) file.punch(at, 12'288);
    }
    faults_.set([this](const std::string& path, FileOperation operation, uint64_t, uint64_t) {
      const bool is_cow_file = path.starts_with(store_path() + "/layers/");
      if (operation == FileOperation::sync && (is_cow_file || path == pool_path())) {
        disk_.note_sync(path);
      }
      return 0;
    });
    open();
  }
  static const Configuration& config() { return GetParam(); }
  size_t below(size_t limit) { return limit == 0 ? 0 : random_() % limit; }

  /// A place that is often on or near a border of a chunk or of the end.
  size_t place(const ModelImage& model) {
    switch (below(4)) {
      case 0:
        return below(config().most / config().chunk_size) * config().chunk_size;
      case 1:
        return std::min(model.bytes.size() + below(20) - std::min<size_t>(10, model.bytes.size()),
                        config().most - 1);
      default:
        return below(config().most);
    }
  }
  size_t extent(size_t offset) {
    const size_t chunk = config().chunk_size;
    size_t length = 0;
    switch (below(4)) {
      case 0:
        length = 1 + below(600);
        break;
      case 1:
        length = chunk * (1 + below(3));
        break;
      case 2:
        length = 1 + below(3 * chunk);
        break;
      default:
        length = 1 + below(config().most);
    }
    return std::min(length, config().most - offset);
  }

  void step();
  void data_step(Image& image, ModelImage& model);
  void copy_step(Image& image, ModelImage& model);
  void names_step();
  void verify(Image& image, const ModelImage& model, const std::string& where);
  void verify_holes(Image& image, const ModelImage& model);
  void end_and_open(bool in_order);

  const uint64_t seed_ = random_seed();
  std::mt19937_64 random_;
  Disk disk_;
  std::map<std::string, ModelImage> models_;
  uint64_t fills_ = 0;
};

void ModelTest::verify(Image& image, const ModelImage& model, const std::string& where) {
  ASSERT_EQ(image.size(), model.bytes.size()) << where;
  const Bytes found = content(image);
  const auto wrong = std::mismatch(found.begin(), found.end(), model.bytes.begin());
  ASSERT_EQ(wrong.first - found.begin(), static_cast<int64_t>(found.size()))
      << where << ": first wrong byte";
}

void ModelTest::verify_holes(Image& image, const ModelImage& model) {
  const auto all_zero = [&](size_t from, size_t to) {
    return std::all_of(model.bytes.begin() + static_cast<int64_t>(from),
                       model.bytes.begin() + static_cast<int64_t>(to),
                       [](std::byte byte) { return byte == std::byte{0}; });
  };
  const size_t size = model.bytes.size();
  const size_t from = below(size + 10);
  const auto data = image.next_data(from);
  const auto hole = image.next_hole(from);
  ASSERT_EQ(hole.has_value(), from < size);
  if (from >= size) {
    ASSERT_FALSE(data);
    return;
  }
  ASSERT_GE(*hole, from);
  ASSERT_LE(*hole, size);
  if (data) {
    ASSERT_GE(*data, from);
    ASSERT_LT(*data, size);
  }
  ASSERT_TRUE(all_zero(from, data ? *data : size)) << "data in a hole";
  ASSERT_TRUE(*hole == from || data == from) << "neither hole nor data";
  if (*hole < size) {
    const auto next = image.next_data(*hole);
    ASSERT_TRUE(all_zero(*hole, next ? *next : size));
  }
}

void ModelTest::copy_step(Image& image, ModelImage& model) {
  auto other = models_.begin();
  std::advance(other, static_cast<int64_t>(below(models_.size())));
  const bool within = &other->second == &model;
  const auto source = store_->find(other->first)->use();
  size_t from = place(other->second);
  size_t to = below(3) == 0 ? place(model) : from;
  size_t length = std::min({extent(from), extent(to), config().most - from, config().most - to});
  if (below(5) == 0) {  // all of it, as cp does
    from = to = 0;
    length = other->second.bytes.size();
  }
  if (within) length = std::min(length, from < to ? to - from : from - to);
  if (length == 0) return;
  size_t done = 0;
  while (done < length) {
    const uint64_t copied = image.copy_from(*source, from + done, to + done, length - done);
    if (copied == 0) break;
    const auto begin = other->second.bytes.begin() + static_cast<int64_t>(from + done);
    ASSERT_LE(from + done + copied, other->second.bytes.size());
    model.write(to + done, Bytes(begin, begin + static_cast<int64_t>(copied)));
    done += copied;
  }
  ASSERT_TRUE(done == length || from + done >= other->second.bytes.size());
}

void ModelTest::data_step(Image& image, ModelImage& model) {
  const size_t offset = place(model);
  const size_t length = extent(offset);
  switch (below(16)) {
    case 0:
    case 1:
    case 2:
    case 3: {
      const Bytes data = below(8) == 0 ? filled(length, 0) : pattern(++fills_, length);
      model.write(offset, data);
      write(image, offset, data);
      break;
    }
    case 4:
    case 5: {
      const size_t end = std::min(offset + length, model.bytes.size());
      if (offset < end) {
        model.remember(offset, end - offset);
        std::fill(model.bytes.begin() + static_cast<int64_t>(offset),
                  model.bytes.begin() + static_cast<int64_t>(end), std::byte{0});
      }
      image.make_zero(offset, length);
      break;
    }
    case 6:
      try {
        image.reserve(offset, length);
      } catch (const Error& error) {
        ASSERT_EQ(error.code(), EOPNOTSUPP);  // not every policy can
      }
      break;
    case 7: {
      const size_t size = below(3) == 0 ? place(model) : below(config().most);
      model.resize(size);
      model.sizes = {size};  // durable when it returns
      image.resize(size);
      break;
    }
    case 8:
      if (offset > model.bytes.size()) model.resize(offset);
      image.extend(offset);
      break;
    case 9:
    case 10:
      copy_step(image, model);
      break;
    case 11:
      below(2) == 0 ? image.flush() : image.flush_all();
      model.flushed();
      break;
    case 12:
      verify_holes(image, model);
      break;
    default: {
      const Bytes found = content(image, offset, length);
      const size_t want =
          offset < model.bytes.size() ? std::min(length, model.bytes.size() - offset) : 0;
      ASSERT_EQ(found.size(), want);
      ASSERT_TRUE(std::equal(
          found.begin(), found.end(),
          model.bytes.begin() + static_cast<int64_t>(std::min(offset, model.bytes.size()))))
          << "read at " << offset << " of " << length;
    }
  }
}

void ModelTest::names_step() {
  const std::string name(1, static_cast<char>('a' + below(5)));
  const std::string other(1, static_cast<char>('a' + below(5)));
  const bool there = models_.contains(name);
  const bool other_there = models_.contains(other);
  switch (below(4)) {
    case 0:
      if (there) {
        store_->remove(name);
        models_.erase(name);
      }
      break;
    case 1:
      if (there && name != other) {
        store_->rename(name, other, Store::Rename::replace);
        auto node = models_.extract(name);
        models_.erase(other);
        node.key() = other;
        models_.insert(std::move(node));
      }
      break;
    case 2:
      if (there && other_there && name != other) {
        store_->rename(name, other, Store::Rename::exchange);
        std::swap(models_.at(name), models_.at(other));
      }
      break;
    default: {
      if (there) break;
      Store::NewImage wanted;
      wanted.name = name;
      wanted.empty = below(3) == 0;
      Bytes bytes = wanted.empty ? Bytes() : base_content_;
      if (below(3) == 0) {
        wanted.size = below(config().most);
        bytes.resize(*wanted.size);
      }
      bytes.resize(std::min(bytes.size(), config().most));
      wanted.size = bytes.size();
      static_cast<void>(store_->create(wanted));
      models_.emplace(name, ModelImage(std::move(bytes)));
    }
  }
}

void ModelTest::end_and_open(bool in_order) {
  std::map<std::string, uint64_t> layers;
  for (const auto& [name, model] : models_) layers[name] = store_->find(name)->layer_id();
  if (in_order) {
    ASSERT_TRUE(store_->close());
    for (auto& [name, model] : models_) model.flushed();
  }
  crash();
  if (in_order && policy_ == "qcow2" && has_qemu()) {
    for (const auto& [name, model] : models_) {
      expect_for_qemu(store_path() + "/layers/" + std::to_string(layers[name]) + ".qcow2",
                      model.bytes);
    }
  }
  disk_.cut_power(store_path() + "/layers", random_);
  if (policy_ == "pool") disk_.cut_power_of(pool_path(), random_);
  open();
  ASSERT_EQ(store_->image_count(), models_.size());
  for (auto& [name, model] : models_) {
    const auto image = store_->find(name)->use();
    if (in_order) {
      verify(*image, model, "after closing: " + name);
      continue;
    }
    ASSERT_NE(std::find(model.sizes.begin(), model.sizes.end(), image->size()), model.sizes.end())
        << name << ": size " << image->size() << " was never there";
    const Bytes found = content(*image);
    for (size_t at = 0; at < found.size(); at += kSector) {
      const size_t length = std::min(kSector, found.size() - at);
      const auto equal = [&](const Sector& value) {
        return std::equal(value.begin(), value.begin() + static_cast<int64_t>(length),
                          found.begin() + static_cast<int64_t>(at));
      };
      const auto values = model.history.find(at / kSector);
      ASSERT_TRUE(equal(model.sector(at / kSector)) ||
                  (values != model.history.end() &&
                   std::any_of(values->second.begin(), values->second.end(), equal)))
          << name << ": sector " << at / kSector
          << " has a value that it never had; it begins with " << static_cast<int>(found[at]);
    }
    model = ModelImage(found);
  }
}

void ModelTest::step() {
  if (models_.empty() || below(12) == 0) {
    names_step();
    return;
  }
  if (below(60) == 0) {
    end_and_open(below(2) == 0);
    return;
  }
  auto chosen = models_.begin();
  std::advance(chosen, static_cast<int64_t>(below(models_.size())));
  if (below(40) == 0) store_->find(chosen->first)->retire_if_idle();
  const auto image = store_->find(chosen->first)->use();
  for (size_t more = 1 + below(8); more > 0 && !HasFatalFailure(); --more) {
    data_step(*image, chosen->second);
    ASSERT_EQ(image->size(), chosen->second.bytes.size());
  }
}

TEST_P(ModelTest, AgreesWithPlainBytes) {
  const char* text = std::getenv("COWFS_MODEL_SECONDS");
  const std::chrono::seconds time(text != nullptr ? std::atoi(text) : 3);
  const auto end = std::chrono::steady_clock::now() + time;
  int steps = 0;
  while (std::chrono::steady_clock::now() < end && !HasFatalFailure()) {
    step();
    ++steps;
  }
  for (const auto& [name, model] : models_) {
    if (HasFatalFailure()) break;
    verify(*store_->find(name)->use(), model, "at the end: " + name);
  }
  EXPECT_FALSE(HasFailure()) << "COWFS_SEED=" << seed_ << " at step " << steps;
  EXPECT_EQ(read_file(base_path()), base_content_);
}

INSTANTIATE_TEST_SUITE_P(
    Chunks, ModelTest,
    ::testing::Values(Configuration{"Of4K", 4096, 100'000, false, 200'000},
                      Configuration{"Of4KOddBaseWithHoles", 4096, 123'457, true, 150'000},
                      Configuration{"Of4KTinyBase", 4096, 100, false, 30'000},
                      Configuration{"Of64K", 65536, 300'001, true, 600'000},
                      Configuration{"Of2M", 2 << 20, (4 << 20) + 777, true, 7 << 20}),
    [](const auto& configuration) { return std::string(configuration.param.name); });

}  // namespace
}  // namespace cowfs::test
