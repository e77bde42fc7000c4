#include "store/store.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <random>
#include <utility>

#include "store/error.h"
#include "store/layout.h"
#include "store/pool.h"

namespace cowfs {
namespace {

namespace fs = std::filesystem;

/// A random (version 4) UUID, RFC 9562.
std::string random_uuid() {
  std::random_device device;
  std::string text;
  constexpr std::string_view kDigits = "0123456789abcdef";
  for (int i = 0; i < 36; ++i) {
    if (i == 8 || i == 13 || i == 18 || i == 23) {
      text += '-';
    } else if (i == 14) {
      text += '4';
    } else {
      const unsigned value = device() % 16;
      text += kDigits[i == 19 ? (value & 3U) | 8U : value];
    }
  }
  return text;
}

/// Network file systems are refused (I9); so is what cannot be written to.
void require_usable_host(const std::string& path, const std::string& directory) {
  const bool there = path == directory;
  const HostFileSystem host = host_file_system(path);
  if (is_network_type(host.type)) {
    throw Error::with_message(
        EOPNOTSUPP, "store " + directory + ": lies on " + host.type +
                        ", a network file system, where locks and SQLite's log cannot be trusted; "
                        "put it on a local one with --store");
  }
  if (host.read_only) {
    throw Error::with_message(
        EROFS, "store " + directory + ": lies on a file system that is mounted read-only; " +
                   (there ? "it can only be looked at there, by cowfs ls, info and check"
                          : "put it elsewhere with --store"));
  }
}

bool is_there(const std::string& path) {
  std::error_code error;
  const bool there = fs::exists(path, error);
  if (error) throw Error(error.value(), path);
  return there;
}

/// A store that has lost its catalog, or has an empty one, is not to be made anew: its CoW files
/// would be taken for left-overs.
void require_no_layers(const std::string& directory) {
  if (!is_there(layers_path(directory))) return;
  const auto has_files = [&](const Policy& policy) {
    return !layers_on_disk(directory, policy.file_suffix).all.empty();
  };
  if (std::none_of(policies().begin(), policies().end(), has_files)) return;
  throw Error::with_message(
      EUCLEAN, "store " + directory +
                   ": damaged: it has CoW files, and its catalog.db is missing or empty; put the "
                   "catalog back from a copy, or name another directory with --store");
}

/// Bytes below which there may be no room for a catalog to be opened in.
constexpr uint64_t kLeastSpace = 256 << 10;

}  // namespace

Store::Store(Options options)
    : options_(std::move(options)),
      arena_(options_.live),
      live_images_(std::make_shared<LiveImages>(options_.live)) {
  const std::string& directory = options_.directory;
  const bool there = is_there(directory);
  if (!there && !options_.create) {
    throw Error::with_message(ENOENT, "store " + directory + ": there is none");
  }
  if (there && !fs::is_directory(directory)) {
    throw Error::with_message(ENOTDIR, "store " + directory + ": is not a directory");
  }
  // What is made below goes again where something fails, so that the next attempt is none the worse
  // for this one. What was there is left, half made or not.
  struct Unmake {
    Store& store;
    bool armed;
    ~Unmake() {
      if (armed) attempt([this] { store.unmake_if_new(); });
    }
  } unmake{*this, !there || fs::is_empty(directory)};
  require_usable_host(there ? directory : fs::path(directory).parent_path().string(), directory);
  // Whatever it holds, it has to be there.
  if (!options_.base_path.empty()) static_cast<void>(open_base_file(options_.base_path));
  if (there && ::access(directory.c_str(), R_OK | W_OK | X_OK) != 0) {
    throw Error{errno, "store " + directory};
  }
  // Before confine, after which it cannot be. Only a new store needs it.
  std::optional<File> parent;
  attempt([&] { parent.emplace(fs::path(directory).parent_path(), O_RDONLY | O_DIRECTORY); });
  bool was_made = false;
  // What a stranger's directory holds is not touched.
  const bool has_lock = there && is_there(directory + "/lock");
  if (there) {
    reserve_ = std::make_unique<Reserve>(directory, &options_.fault_hook);
    std::optional<BaseRow> recorded;
    if (is_there(catalog_path(directory))) {
      take_lock();
      const auto look = [&] { return peek_base_row(catalog_path(directory)); };
      with_room([&] { recorded = options_.apart ? options_.apart(look) : look(); });
      was_made = recorded.has_value();
    }
    if (!options_.names_only && (was_made || options_.create)) open_base(recorded);
    open_pool(true);
    confine();
  } else {
    open_pool(false);
  }
  if (!was_made) {
    if (there) require_no_layers(directory);
    if (!options_.create) {
      throw Error::with_message(ENOENT, "store " + directory + ": holds no catalog.db");
    }
    // Somebody else may be making it just now: his lock comes before all else.
    const auto has_other_lock = [&] {
      return has_lock || (!lock_ && is_there(directory + "/lock"));
    };
    if (there && !fs::is_empty(directory) && !has_other_lock()) {
      throw Error::with_message(ENOTEMPTY, "store " + directory +
                                               ": is neither empty nor a store; name another "
                                               "directory with --store");
    }
    make(*options_.schema, parent ? &*parent : nullptr);
  }

  if (!there) reserve_ = std::make_unique<Reserve>(directory, &options_.fault_hook);
  if (options_.live->taken_over()) {
    // Upgraded, it would be of no use to the program of before if this one fails.
    static_cast<void>(Catalog(catalog_path(directory), reading_mode(directory), *options_.schema));
  }
  open_catalog();
  if (catalog_->upgraded()) {
    options_.log->warn(
        "store {}: upgraded to format version {}; a copy of the old catalog is "
        "beside it",
        directory, catalog_->format_version());
  }
  facts_ = facts_of(directory, *catalog_);
  if (options_.chunk_size && *options_.chunk_size != facts_.chunk_size) {
    throw Error::with_message(EINVAL, "store " + directory + ": has chunks of " +
                                          std::to_string(facts_.chunk_size) + " bytes, not of " +
                                          std::to_string(*options_.chunk_size) +
                                          "; the chunk size is fixed when a store is made");
  }
  if (options_.policy && *options_.policy != facts_.policy) {
    throw Error::with_message(EINVAL, "store " + directory + ": has policy " + facts_.policy +
                                          ", not " + *options_.policy +
                                          "; the policy is fixed when a store is made");
  }
  policy_ = &find_policy(facts_.policy, options_.policies);
  use_pool();
  if (!options_.names_only) check_base();
  claim_pool();
  load();
  committer_ = std::make_unique<Committer>(
      *catalog_, *reserve_, [this] { return all_images(); }, *options_.log);
  unmake.armed = false;
}

Store::~Store() {
  committer_.reset();
  catalog_.reset();
  if (log_is_astray_) {
    std::error_code ignored;
    for (const char* suffix : {"-wal", "-shm"}) {
      fs::remove(catalog_path(options_.directory) + suffix, ignored);
    }
  }
  // SQLite has removed its log: there may be space again for the next who opens the store.
  if (reserve_ != nullptr) reserve_->renew();
}

void Store::confine() {
  if (const auto confine = std::exchange(options_.confine, nullptr)) confine(base_.get());
}

void Store::take_lock() {
  if (lock_) return;
  lock_.emplace(options_.directory,
                Holder{.pid = ::getpid(), .mount = options_.mount, .ending = false},
                options_.lock_held);
}

void Store::with_room(const std::function<void()>& open) {
  try {
    open();
  } catch (const Error& error) {
    // SQLite does not always say that it was space.
    const bool vague = error.code() == EIO || error.code() == ENOENT;
    const bool full = is_no_space(error.code()) ||
                      (vague && space_at(options_.directory).available < kLeastSpace);
    if (!full) throw;
    if (reserve_->give_up()) {
      open();
    } else {
      throw Error::with_message(ENOSPC, "store " + options_.directory +
                                            ": the disk is full, and there is no room to open the "
                                            "catalog; make some");
    }
  }
}

void Store::open_catalog() {
  with_room([this] {
    catalog_ = std::make_unique<Catalog>(catalog_path(options_.directory),
                                         writing_mode(options_.directory), *options_.schema);
  });
  catalog_->when_full([this] {
    if (!reserve_->give_up()) return;
    options_.log->error(
        "store {}: the disk is full: the reserve of the catalog was given up, so that flushes go "
        "on for now; make room",
        options_.directory);
  });
  reserve_->renew();
}

void Store::unmake_if_new() {
  if (!made_here_ || image_count() > 0) return;
  committer_.reset();
  catalog_.reset();
  reserve_.reset();  // or the destructor would make it anew
  std::error_code ignored;
  unmake_pool();
  for (const char* name :
       {"catalog.db", "catalog.db-wal", "catalog.db-shm", "layers", "lock", "reserve", "pool"}) {
    fs::remove(options_.directory + "/" + name, ignored);
  }
  fs::remove(options_.directory, ignored);
}

void Store::make(const Schema& schema, const File* parent) {
  if (base_ == nullptr) open_base(std::nullopt);
  if (base_ == nullptr) {
    throw Error::with_message(ENOENT, "store " + options_.directory + ": holds no catalog.db");
  }
  const Policy& policy = find_policy(options_.policy.value_or("sparse"), options_.policies);
  const uint32_t chunk_size = options_.chunk_size.value_or(policy.default_chunk_size);
  if (!ChunkSize::valid(chunk_size)) {
    throw Error::with_message(EINVAL, "chunk size " + std::to_string(chunk_size) +
                                          ": is not a power of two from 4 KiB to 2 MiB");
  }
  if (policy.require_base != nullptr) policy.require_base(base_->identity());
  std::optional<uint64_t> pool_slots;
  if (policy.has_pool) pool_slots = plan_pool(ChunkSize(chunk_size));
  const BaseRow base = base_->identity_and_fingerprints();

  const std::string& directory = options_.directory;
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    throw Error{errno, "make store " + directory};
  }
  confine();
  take_lock();
  if (Catalog::exists(catalog_path(directory))) return;  // somebody else has made it meanwhile
  made_here_ = true;
  // A power cut must leave what the next opening takes for empty, half made or whole (I6). The lock
  // tells a half made store from a stranger's directory, and a catalog promises that the folder of
  // the layers is there: each is durable before what follows.
  const File entries(directory, O_RDONLY | O_DIRECTORY);
  entries.sync();
  if (::mkdir(layers_path(directory).c_str(), 0700) != 0 && errno != EEXIST) {
    throw Error{errno, "make " + layers_path(directory)};
  }
  if (pool_slots) make_pool(ChunkSize(chunk_size), *pool_slots);
  entries.sync();
  const mode_t old_mask = ::umask(0077);  // SQLite gives its log the mode of the database
  try {
    Catalog::create(catalog_path(directory),
                    StoreRow{.uuid = random_uuid(),
                             .chunk_size = chunk_size,
                             .policy = std::string(policy.name),
                             .created_ns = catalog_now(),
                             .pool_slots = pool_slots,
                             .pool_generation = next_generation(0)},
                    base, schema);
  } catch (...) {
    ::umask(old_mask);
    throw;
  }
  ::umask(old_mask);
  if (parent == nullptr) throw Error(EACCES, "sync the directory of " + directory);
  parent->sync();
}

void Store::load() {
  layers_directory_.emplace(layers_path(facts_.directory), O_RDONLY | O_DIRECTORY, 0,
                            &options_.fault_hook);
  policy_context_.emplace(
      PolicyContext{.chunk = ChunkSize(facts_.chunk_size),
                    .directory = layers_path(facts_.directory),
                    .arena = arena_,
                    .catalog = *catalog_,
                    .hook = &options_.fault_hook,
                    .entries = &*layers_directory_,
                    .pool = pool_file_.get(),
                    .store = facts_.uuid,
                    .base = base_ ? &base_row_.emplace(base_->identity()) : nullptr,
                    .close_idle = [this] { return close_idle(); }});
  policy_at_work_ = policy_->open(*policy_context_);
  if (Pool* const pool = policy_at_work_->pool(); pool != nullptr && pool->take_over_growth()) {
    pool_has_grown_ = true;
    options_.log->info("{}: has grown; it has {} bytes now", pool_title(pool_file_->path()),
                       pool->space().total);
  }
  image_context_.emplace(
      Image::Context{.base = base_.get(),
                     .chunk = ChunkSize(facts_.chunk_size),
                     .catalog = *catalog_,
                     .reserve = *reserve_,
                     .live = live_images_,
                     .log = *options_.log,
                     .name_of = [this](uint64_t id) { return name_of(id); },
                     .free_unlinked = [this](Image& image) { free_unlinked(image); },
                     .close_idle = [this] { return close_idle(); }});

  const std::vector<LayerRow> layers = catalog_->layers();
  std::unordered_map<uint64_t, LayerRow> by_id;
  for (const LayerRow& layer : layers) by_id.emplace(layer.id, layer);
  std::vector<std::pair<ImageRow, LayerRow>> adopted;
  std::map<uint64_t, std::string> refusals;
  std::vector<ImageRow> rows = catalog_->images();
  for (ImageRow& row : rows) {
    const auto layer = by_id.find(row.layer);
    if (layer == by_id.end() || !adopt(row, layer->second, refusals)) continue;
    adopted.emplace_back(row, layer->second);
  }
  {
    auto names = names_.lock();
    for (const ImageRow& row : rows) {
      const auto layer = by_id.find(row.layer);
      if (layer == by_id.end()) {
        throw Error::with_message(EUCLEAN, catalog_->path() +
                                               ": damaged: " + image_title(row.id, row.name) +
                                               " has no layer of its own");
      }
      const LayerRow of_image = layer->second;
      by_id.erase(layer);  // two images on one layer would write over each other
      std::shared_ptr<Image> image = make_image(row, of_image);
      if (const auto why = refusals.find(row.id); why != refusals.end()) {
        image->note_refusal(why->second);
      }
      names->by_id.emplace(row.id, Entry{row.name.value_or(""), image});
      if (row.name) names->by_name.emplace(*row.name, row.id);
    }
  }
  const std::vector<uint64_t> without_file =
      !policy_->file_suffix.empty() ? catalog_->layers_without_file() : std::vector<uint64_t>();
  for (const uint64_t layer : without_file) {
    throw Error::with_message(
        EUCLEAN, catalog_->path() + ": damaged: layer " + std::to_string(layer) +
                     " has a map that says it has data, and no CoW file that counts; put CoW file "
                     "and catalog back from one copy");
  }
  if (!options_.names_only) require_files(layers, rows);
  remove_left_overs(layers);
  for (const auto& [row, layer] : adopted) record_adopted(*find(row.id), row, layer);
  done_ = catalog_->requests();
  if (options_.live->taken_over()) {
    inherit();
    return;
  }
  // Of a mount that is no more.
  if (!done_.empty()) {
    catalog_->change([](Catalog::Change& change) { change.forget_requests(); });
    done_.clear();
  }
  free_unused();
}

bool Store::adopt(ImageRow& image, LayerRow& layer, std::map<uint64_t, std::string>& refusals) {
  try {
    const uint64_t size = image.size;
    const bool changed = policy_at_work_->adopt(image, layer);
    if (size != image.size) {
      options_.log->info("{}: has {} bytes now, and had {}: another program has changed its layer",
                         image_title(image.id, image.name), image.size, size);
    }
    return changed;
  } catch (const Error& error) {
    // The other images are none the worse.
    options_.log->error("{}: cannot be used: {}", image_title(image.id, image.name), error.what());
    refusals.emplace(image.id, error.what());
    return false;
  }
}

void Store::record_adopted(Image& made, const ImageRow& image, const LayerRow& layer) {
  // A new layer may have to hide some of the base, and counts only once it does.
  if (layer.parent_limit < std::min(image.size, base_->size())) made.use()->flush();
  catalog_->change([&](Catalog::Change& change) {
    change.set_size(image.id, image.size);
    change.set_parent_limit(layer.id, layer.parent_limit);
    change.set_has_file(layer.id);
    change.set_failure(layer.id, layer.failure);
  });
}

std::vector<std::shared_ptr<Image>> Store::all_images() {
  std::vector<std::shared_ptr<Image>> images;
  auto names = names_.lock();
  for (const auto& [id, entry] : names->by_id) images.push_back(entry.image);
  return images;
}

void Store::inherit() {
  for (const std::shared_ptr<Image>& image : all_images()) image->inherit();
  // Of images that were removed.
  arena_.release_found();
  live_images_->release_others();
}

void Store::free_unused() {
  for (const std::shared_ptr<Image>& image : all_images()) {
    if (!has_name(*image) && image->unlink()) forget(*image);
  }
}

std::shared_ptr<Image> Store::make_image(const ImageRow& row, const LayerRow& layer) {
  if (layer.failure) {
    options_.log->error(
        "{}: takes no writes: {}; look at the disk, then end this with cowfs check --clear, or "
        "with cowfs umount --force and a new mount",
        image_title(row.id, row.name), *layer.failure);
  }
  return std::make_shared<Image>(*image_context_, row, policy_at_work_->layer(layer),
                                 layer.failure);
}

bool Store::close() {
  committer_.reset();
  bool good = true;
  const std::vector<std::shared_ptr<Image>> images = all_images();
  std::vector<Image*> touched;
  for (const std::shared_ptr<Image>& image : images) {
    try {
      if (image->failed()) {
        good = false;
      } else if (image->needs_flush()) {
        image->use()->flush_all();
      } else if (image->dirty()) {
        touched.push_back(image.get());
      }
    } catch (const Error& error) {
      options_.log->error("close: {}: {}", image->title(), error.what());
      good = false;
    }
  }
  // Whoever comes next finds what is closed well.
  for (const std::shared_ptr<Image>& image : images) image->try_retire();
  // Times alone: one commit for all.
  try {
    if (!touched.empty()) {
      catalog_->change([&](Catalog::Change& change) {
        for (Image* image : touched) image->put_times(change);
      });
    }
  } catch (const Error& error) {
    options_.log->error("close: times: {}", error.what());
    good = false;
  }
  try {
    for (const std::string& path : missing()) {
      options_.log->error(
          "close: {}: is gone: somebody deleted or replaced it, and what was in it is lost", path);
      good = false;
    }
    if (!catalog_->is_in_place()) rescue_catalog();
  } catch (const Error& error) {
    options_.log->error("close: {}", error.what());
    good = false;
  }
  // A copy of the directory that was made since the opening does not fit from here on.
  if (pool_file_ && catalog_->is_in_place() && pool_file_->is_in_place()) {
    attempt([this] { begin_pool_generation(); });
  }
  return good;
}

void Store::clear_failures() {
  for (const std::shared_ptr<Image>& image : all_images()) {
    if (!image->failed()) continue;
    try {
      image->clear_failure(false);
      options_.log->warn("{}: had failed; it takes writes again when it is mounted next",
                         image->title());
    } catch (const Error& error) {
      options_.log->error("{}: still counts as failed: {}", image->title(), error.what());
    }
  }
}

void Store::announce_ending() {
  lock_->announce({.pid = ::getpid(), .mount = options_.mount, .ending = true});
}

}  // namespace cowfs
