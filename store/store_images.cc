// The images of a store by name and number: create, find, remove, rename.

#include <spdlog/logger.h>

#include <algorithm>
#include <cerrno>

#include "store/error.h"
#include "store/names.h"
#include "store/store.h"

namespace cowfs {
std::shared_ptr<Image> Store::find(std::string_view name) {
  auto names = names_.lock();
  const auto found = names->by_name.find(std::string(name));
  return found == names->by_name.end() ? nullptr : names->by_id.at(found->second).image;
}

std::shared_ptr<Image> Store::find(uint64_t id) {
  auto names = names_.lock();
  const auto found = names->by_id.find(id);
  return found == names->by_id.end() ? nullptr : found->second.image;
}

std::optional<std::string> Store::name_of(uint64_t id) {
  auto names = names_.lock();
  const auto found = names->by_id.find(id);
  if (found == names->by_id.end() || found->second.name.empty()) return std::nullopt;
  return found->second.name;
}

std::vector<Store::Entry> Store::list(uint64_t after, size_t limit) {
  auto names = names_.lock();
  std::vector<Entry> entries;
  for (auto at = names->by_id.upper_bound(after);
       at != names->by_id.end() && entries.size() < limit; ++at) {
    if (!at->second.name.empty()) entries.push_back(at->second);
  }
  return entries;
}

size_t Store::image_count() { return names_.lock()->by_name.size(); }

size_t Store::failed_images() {
  const std::vector<Entry> entries = list(0, SIZE_MAX);
  return static_cast<size_t>(std::count_if(entries.begin(), entries.end(), [](const Entry& entry) {
    return entry.image->failure() || entry.image->refusal();
  }));
}

uint64_t Store::own_bytes() {
  uint64_t sum = 0;
  for (const Entry& entry : list(0, SIZE_MAX)) sum += entry.image->own_bytes();
  return sum;
}

// Who calls it holds chunks of an image in use at most, and only idle images are flushed: so no two
// can come to wait for each other.
bool Store::close_idle() {
  const std::vector<Entry> all = list(0, SIZE_MAX);
  bool closed = false;
  for (const Entry& entry : all) closed |= entry.image->try_retire();
  if (closed) return true;
  constexpr int enough = 32;  // each has to be synced first
  int count = 0;
  for (auto at = all.begin(); at != all.end() && count < enough; ++at) {
    if (at->image->retire_if_idle()) ++count;
  }
  return count > 0;
}

std::shared_ptr<Image> Store::create(const NewImage& image, uint64_t request) {
  check_name(image.name);
  const std::lock_guard lock(change_mutex_);
  if (find(image.name) != nullptr) throw Error(EEXIST, "image " + image.name);
  const uint64_t size = image.size.value_or(image.empty ? 0 : base_->size());
  const uint64_t largest = policy_at_work_->largest_size();
  if (size > largest) {
    throw Error::with_message(EFBIG, "image " + image.name + ": can have " +
                                         std::to_string(largest) + " bytes at most in this store");
  }
  const uint64_t limit = image.empty ? 0 : std::min(size, base_->size());
  const int64_t now = catalog_now();
  ImageRow row{.id = 0,
               .name = image.name,
               .layer = 0,
               .size = size,
               .mode = image.mode & 0777U,
               .uid = image.uid,
               .gid = image.gid,
               .atime_ns = now,
               .mtime_ns = now,
               .ctime_ns = now,
               .btime_ns = now};
  change_names(request, [&](Catalog::Change& change) {
    row.layer = change.add_layer(limit);
    row.id = change.add_image(row);
    return row.id;
  });
  LayerRow layer{.id = row.layer, .parent_limit = limit};
  std::shared_ptr<Image> made;
  const auto add = [&] {
    auto names = names_.lock();
    names->by_id.emplace(row.id, Entry{image.name, made});
    names->by_name.emplace(image.name, row.id);
  };
  try {
    const bool is_to_be_recorded = policy_at_work_->adopt(row, layer);
    made = make_image(row, layer);
    if (is_to_be_recorded) record_adopted(*made, row, layer);
    add();
  } catch (const std::exception& error) {
    made.reset();
    // What cannot be taken back is there, and is shown: the next mount makes its layer.
    if (!unmake(row, request)) {
      options_.log->error("{}: {}: and the catalog does not forget it either; remove it",
                          image_title(row.id, row.name), error.what());
      attempt([&] {
        made = make_image(row, {.id = row.layer, .parent_limit = limit});
        add();
      });
    }
    throw;
  }
  return made;
}

bool Store::unmake(const ImageRow& row, uint64_t request) {
  const bool gone = attempt([&] {
    catalog_->change([&](Catalog::Change& change) {
      change.remove_image(row.id, row.layer);
      if (request != 0) change.forget_request(request);
    });
  });
  if (!gone) return false;
  attempt([&] { policy_at_work_->layer({.id = row.layer})->remove_files(); });
  return true;
}

void Store::require_not_elsewhere(const Image& image) {
  if (!image.is_used_elsewhere()) return;
  throw Error::with_message(EBUSY, image.title() +
                                       ": is in use by another program, such as QEMU, "
                                       "that has its file open; end that first");
}

void Store::remove(std::string_view name, uint64_t request) {
  const std::lock_guard lock(change_mutex_);
  const std::shared_ptr<Image> image = find(name);
  if (image == nullptr) throw Error(ENOENT, "image " + std::string(name));
  require_not_elsewhere(*image);
  const bool idle = image->unlink();
  try {
    change_names(request, [&](Catalog::Change& change) {
      if (idle) {
        take_from_catalog(change, *image);
      } else {
        change.set_name(image->id(), std::nullopt);
      }
      return 0;
    });
  } catch (...) {
    image->cancel_unlink();
    throw;
  }
  {
    auto names = names_.lock();
    names->by_name.erase(std::string(name));
    if (idle) {
      names->by_id.erase(image->id());
    } else {
      names->by_id.at(image->id()).name.clear();
    }
  }
  if (idle)
    remove_files(*image, image_title(image->id(), std::string(name)));  // after the catalog (I12)
}

void Store::free_unlinked(Image& image) {
  try {
    const std::lock_guard lock(change_mutex_);
    // It has its name still if the change that was to take it failed.
    if (!has_name(image)) forget(image);
  } catch (const Error& error) {
    options_.log->warn("{}: unlinked, not freed before the next mount: {}", image.title(),
                       error.what());
  }
}

void Store::forget(Image& image) {
  const std::shared_ptr<Image> keep = find(image.id());
  if (keep == nullptr) return;
  catalog_->change([&](Catalog::Change& change) { take_from_catalog(change, image); });
  names_.lock()->by_id.erase(image.id());
  remove_files(image, image_title(image.id(), std::nullopt));
}

void Store::take_from_catalog(Catalog::Change& change, const Image& image) {
  policy_at_work_->forget(change, image.layer_id());
  change.remove_image(image.id(), image.layer_id());
}

bool Store::has_name(const Image& image) {
  auto names = names_.lock();
  const auto found = names->by_id.find(image.id());
  return found != names->by_id.end() && !found->second.name.empty();
}

void Store::remove_files(Image& image, const std::string& title) {
  try {
    image.remove_files();
  } catch (const Error& error) {
    // The image is gone all the same; the next opening of the store tries again.
    options_.log->warn("{}: removed, but its space is not given back: {}", title, error.what());
  }
}

void Store::rename(std::string_view from, std::string_view to, Rename how, uint64_t request) {
  check_name(to);
  const std::lock_guard lock(change_mutex_);
  const std::shared_ptr<Image> source = find(from);
  if (source == nullptr) throw Error(ENOENT, "image " + std::string(from));
  const std::shared_ptr<Image> target = find(to);
  if (how == Rename::exchange && target == nullptr) throw Error(ENOENT, "image " + std::string(to));
  if (how == Rename::no_replace && target != nullptr)
    throw Error(EEXIST, "image " + std::string(to));
  if (source == target) return;
  if (target != nullptr && how != Rename::exchange) require_not_elsewhere(*target);

  const bool exchange = how == Rename::exchange;
  const bool replaced = target != nullptr && !exchange;
  const bool idle = replaced && target->unlink();
  try {
    change_names(request, [&](Catalog::Change& change) {
      // Names are unique at every step: the target loses its own first.
      if (target != nullptr) change.set_name(target->id(), std::nullopt);
      change.set_name(source->id(), std::string(to));
      if (exchange) change.set_name(target->id(), std::string(from));
      if (idle) take_from_catalog(change, *target);
      return 0;
    });
  } catch (...) {
    if (replaced) target->cancel_unlink();
    throw;
  }
  {
    auto names = names_.lock();
    names->by_name.erase(std::string(from));
    names->by_name[std::string(to)] = source->id();
    names->by_id.at(source->id()).name = to;
    if (exchange) {
      names->by_name[std::string(from)] = target->id();
      names->by_id.at(target->id()).name = from;
    } else if (idle) {
      names->by_id.erase(target->id());
    } else if (replaced) {
      names->by_id.at(target->id()).name.clear();
    }
  }
  if (idle) remove_files(*target, image_title(target->id(), std::string(to)));
}

void Store::change_names(uint64_t request, const std::function<uint64_t(Catalog::Change&)>& work) {
  if (request == 0) {
    catalog_->change([&](Catalog::Change& change) { work(change); });
    return;
  }
  const std::set<uint64_t> old = *answered_.lock();
  catalog_->change([&](Catalog::Change& change) {
    change.record_request(request, work(change));
    for (const uint64_t answered : old) change.forget_request(answered);
  });
  auto answered = answered_.lock();
  for (const uint64_t forgotten : old) answered->erase(forgotten);
}

std::optional<uint64_t> Store::done(uint64_t request) const {
  const auto found = done_.find(request);
  return found == done_.end() ? std::nullopt : std::optional(found->second);
}

void Store::answered(uint64_t request) { answered_.lock()->insert(request); }

}  // namespace cowfs
