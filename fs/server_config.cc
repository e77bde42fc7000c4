#include "fs/server_config.h"

#include <cerrno>
#include <nlohmann/json.hpp>

#include "fs/byte_json.h"
#include "store/error.h"

namespace cowfs {
namespace {

template <typename T>
nlohmann::json or_null(const std::optional<T>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json();
}

template <typename T>
std::optional<T> optional_at(const nlohmann::json& json, const char* key) {
  const nlohmann::json& value = json.at(key);
  return value.is_null() ? std::nullopt : std::optional(value.get<T>());
}

}  // namespace

nlohmann::json to_json(const ServerConfig& config) {
  nlohmann::json fuse_options = nlohmann::json::array();
  for (const std::string& option : config.fuse_options)
    fuse_options.push_back(bytes_to_json(option));
  nlohmann::json allow_backing = nlohmann::json::array();
  for (const std::string& path : config.store.allow_backing) {
    allow_backing.push_back(bytes_to_json(path));
  }
  return {{"store", bytes_to_json(config.store.directory)},
          {"base", bytes_to_json(config.store.base_path)},
          {"chunk_size", or_null(config.store.chunk_size)},
          {"policy", or_null(config.store.policy)},
          {"pool", config.store.pool ? bytes_to_json(*config.store.pool) : nlohmann::json()},
          {"pool_size", or_null(config.store.pool_size)},
          {"base_format", config.store.base_format
                              ? nlohmann::json(format_name(*config.store.base_format))
                              : nlohmann::json()},
          {"base_snapshot", config.store.base_snapshot ? bytes_to_json(*config.store.base_snapshot)
                                                       : nlohmann::json()},
          {"allow_backing", allow_backing},
          {"create", config.store.create},
          {"accept_changed_base", config.store.accept_changed_base},
          {"mount_point", bytes_to_json(config.mount_point)},
          {"read_only", config.read_only},
          {"allow_other", config.allow_other},
          {"uid", or_null(config.uid)},
          {"gid", or_null(config.gid)},
          {"umask", or_null(config.umask)},
          {"writeback", config.cache == CacheMode::writeback},
          {"full_waits", config.full == FullMode::wait},
          {"watermarks", config.watermarks},
          {"on_watermark", bytes_to_json(config.on_watermark)},
          {"max_read", or_null(config.max_read)},
          {"resend", config.resend},
          {"fuse_options", fuse_options}};
}

ServerConfig server_config_from_json(const nlohmann::json& json) {
  try {
    ServerConfig config;
    config.store.directory = bytes_from_json(json.at("store"));
    config.store.base_path = bytes_from_json(json.at("base"));
    config.store.chunk_size = optional_at<uint32_t>(json, "chunk_size");
    config.store.policy = optional_at<std::string>(json, "policy");
    // What follows is not in the configuration of a keeper from before it was known.
    if (const nlohmann::json pool = json.value("pool", nlohmann::json()); !pool.is_null()) {
      config.store.pool = bytes_from_json(pool);
    }
    if (const nlohmann::json size = json.value("pool_size", nlohmann::json()); !size.is_null()) {
      config.store.pool_size = size.get<uint64_t>();
    }
    if (const nlohmann::json format = json.value("base_format", nlohmann::json());
        !format.is_null()) {
      config.store.base_format = find_base_format(format.get<std::string>());
    }
    if (const nlohmann::json snapshot = json.value("base_snapshot", nlohmann::json());
        !snapshot.is_null()) {
      config.store.base_snapshot = bytes_from_json(snapshot);
    }
    for (const nlohmann::json& path : json.value("allow_backing", nlohmann::json::array())) {
      config.store.allow_backing.push_back(bytes_from_json(path));
    }
    config.store.create = json.at("create");
    config.store.accept_changed_base = json.at("accept_changed_base");
    config.mount_point = bytes_from_json(json.at("mount_point"));
    config.read_only = json.at("read_only");
    config.allow_other = json.at("allow_other");
    config.uid = optional_at<uid_t>(json, "uid");
    config.gid = optional_at<gid_t>(json, "gid");
    config.umask = optional_at<mode_t>(json, "umask");
    config.cache = json.at("writeback").get<bool>() ? CacheMode::writeback : CacheMode::none;
    config.full = json.at("full_waits").get<bool>() ? FullMode::wait : FullMode::error;
    config.watermarks = json.at("watermarks").get<std::vector<unsigned>>();
    config.on_watermark = bytes_from_json(json.at("on_watermark"));
    config.max_read = optional_at<uint32_t>(json, "max_read");
    config.resend = json.at("resend");
    for (const nlohmann::json& option : json.at("fuse_options")) {
      config.fuse_options.push_back(bytes_from_json(option));
    }
    return config;
  } catch (const nlohmann::json::exception& error) {
    throw Error::with_message(EPROTO, std::string("configuration of the server: ") + error.what());
  }
}

}  // namespace cowfs
