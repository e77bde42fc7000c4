#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace cowfs {

/// Paths and commands may hold bytes that are no UTF-8, which JSON's strings may not: they travel
/// as arrays of numbers. Any thread may call either.
inline nlohmann::json bytes_to_json(const std::string& text) {
  return std::vector<unsigned char>(text.begin(), text.end());
}

/// The reverse; throws nlohmann::json::exception for anything but an array of numbers.
inline std::string bytes_from_json(const nlohmann::json& json) {
  const auto numbers = json.get<std::vector<unsigned char>>();
  return {numbers.begin(), numbers.end()};
}

}  // namespace cowfs
