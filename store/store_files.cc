// The files of a store, and whether they go with its catalog.

#include <spdlog/logger.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "store/check_database.h"
#include "store/error.h"
#include "store/layout.h"
#include "store/store.h"

namespace cowfs {

void Store::require_files(const std::vector<LayerRow>& layers,
                          const std::vector<ImageRow>& images) const {
  const LayersOnDisk on_disk = layers_on_disk(facts_.directory, policy_->file_suffix);
  for (const LayerRow& layer : layers) {
    const bool irregular = on_disk.irregular.contains(layer.id);
    if (!irregular && (!layer.has_file || on_disk.all.contains(layer.id))) continue;
    const auto image = std::find_if(images.begin(), images.end(), [&](const ImageRow& row) {
      return row.layer == layer.id && row.name;
    });
    throw Error::with_message(
        EUCLEAN, "store " + facts_.directory + ": damaged: the CoW file " +
                     layers_path(facts_.directory) + "/" +
                     layer_file_name(layer.id, policy_->file_suffix) +
                     (irregular ? " is no regular file" : " is missing") +
                     ", and what a machine wrote is gone; put it back from a copy" +
                     (image == images.end() ? ""
                                            : ", or give its image up with `cowfs rm --store " +
                                                  facts_.directory + " " + *image->name + "`"));
  }
}

void Store::remove_left_overs(const std::vector<LayerRow>& layers) {
  const std::string directory = layers_path(facts_.directory);
  const LayersOnDisk on_disk = layers_on_disk(facts_.directory, policy_->file_suffix);
  std::set<uint64_t> known;
  for (const LayerRow& layer : layers) known.insert(layer.id);
  // A file is made after its layer's row is durable, so the catalog has known the number of each.
  const uint64_t last = catalog_->last_layer();
  if (!on_disk.all.empty() && *on_disk.all.rbegin() > last) {
    throw Error::with_message(
        EUCLEAN, "store " + facts_.directory + ": damaged: the CoW file " + directory + "/" +
                     layer_file_name(*on_disk.all.rbegin(), policy_->file_suffix) +
                     " is newer than the catalog, which may be an old copy; put the right "
                     "catalog.db back, or move the file elsewhere");
  }
  // Of images that were removed: the catalog forgets first (I12).
  for (const uint64_t id : on_disk.all) {
    if (known.contains(id)) continue;
    const std::string path = directory + "/" + layer_file_name(id, policy_->file_suffix);
    if (on_disk.irregular.contains(id)) {
      throw Error::with_message(EUCLEAN, "store " + facts_.directory + ": damaged: " + path +
                                             " is no regular file, and of no image; move it "
                                             "elsewhere");
    }
    remove_file(path, &options_.fault_hook);
    options_.log->info("left over: {}: removed; its image was removed before", path);
  }
}

void Store::rescue_catalog() {
  // What lies in its place must not get its log, which SQLite leaves behind then.
  log_is_astray_ = true;
  const std::string path = save_catalog(
      [this](const std::string& copy) { catalog_->copy_to(copy); }, catalog_->path(), ".rescued");
  options_.log->error("close: the catalog as it was is saved as {}: put it in its place", path);
}

std::vector<std::string> Store::missing() {
  std::vector<std::string> paths;
  if (!catalog_->is_in_place()) paths.push_back(catalog_->path());
  if (pool_file_ && !pool_file_->is_in_place()) paths.push_back(pool_file_->path());
  for (const LayerRow& layer : catalog_->layers()) {
    if (layer.has_file && !cow_file(facts_.directory, layer.id)) {
      paths.push_back(layers_path(facts_.directory) + "/" +
                      layer_file_name(layer.id, policy_->file_suffix));
    }
  }
  return paths;
}

}  // namespace cowfs
