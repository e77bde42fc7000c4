#include "fs/apart.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "fs/byte_json.h"
#include "fs/sandbox.h"
#include "store/error.h"

namespace cowfs {
namespace {

nlohmann::json file_to_json(const BaseFileRow& file) {
  return {{"path", bytes_to_json(file.path)}, {"format", format_name(file.format)}};
}

BaseFileRow file_from_json(const nlohmann::json& json) {
  BaseFileRow file;
  file.path = bytes_from_json(json.at("path"));
  file.format = find_base_format(json.at("format").get<std::string>()).value();
  return file;
}

nlohmann::json answer_of(const std::string& store,
                         const std::function<std::optional<BaseRow>()>& look) {
  try {
    spdlog::logger silent("apart");
    enter_sandbox({}, store, silent);
    const std::optional<BaseRow> row = look();
    if (!row) return {{"row", nullptr}};
    nlohmann::json json = file_to_json(*row);
    json["backing"] = nlohmann::json::array();
    for (const BaseFileRow& file : row->backing) json["backing"].push_back(file_to_json(file));
    json["snapshot"] = row->snapshot ? bytes_to_json(*row->snapshot) : nlohmann::json();
    return {{"row", json}};
  } catch (const Error& error) {
    return {{"code", error.code()}, {"message", bytes_to_json(error.what())}};
  }
}

[[noreturn]] void answer(int pipe, const std::string& store,
                         const std::function<std::optional<BaseRow>()>& look) {
  attempt([&] {
    const std::string text = answer_of(store, look).dump();
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t put = ::write(pipe, text.data() + done, text.size() - done);
      if (put < 0 && errno != EINTR) break;
      if (put > 0) done += static_cast<size_t>(put);
    }
  });
  ::_exit(0);
}

std::string read_all(int pipe) {
  constexpr size_t kMost = 4U << 20U;
  std::string text;
  std::array<char, 4096> piece{};
  while (text.size() < kMost) {
    const ssize_t got = ::read(pipe, piece.data(), piece.size());
    if (got == 0) break;
    if (got < 0 && errno != EINTR) break;
    if (got > 0) text.append(piece.data(), static_cast<size_t>(got));
  }
  return text;
}

}  // namespace

std::optional<BaseRow> look_apart(const std::string& store,
                                  const std::function<std::optional<BaseRow>()>& look) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw Error{errno, "look into " + store};
  const pid_t child = ::fork();
  if (child == 0) answer(ends[1], store, look);
  const int failure = errno;
  ::close(ends[1]);
  const std::string text = child > 0 ? read_all(ends[0]) : std::string();
  ::close(ends[0]);
  if (child < 0) throw Error{failure, "look into " + store};
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  try {
    const nlohmann::json said = nlohmann::json::parse(text);
    if (said.contains("code")) {
      throw Error::with_message(said.at("code"), bytes_from_json(said.at("message")));
    }
    const nlohmann::json& json = said.at("row");
    if (json.is_null()) return std::nullopt;
    BaseRow row;
    static_cast<BaseFileRow&>(row) = file_from_json(json);
    for (const nlohmann::json& file : json.at("backing")) {
      row.backing.push_back(file_from_json(file));
    }
    if (!json.at("snapshot").is_null()) row.snapshot = bytes_from_json(json.at("snapshot"));
    return row;
  } catch (const nlohmann::json::exception&) {
    // It died over what it read.
    throw Error::with_message(EUCLEAN, "store " + store + ": its catalog cannot be read");
  }
}

}  // namespace cowfs
