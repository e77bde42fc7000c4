#include "fs/control.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "store/error.h"

namespace cowfs {
namespace {

TEST(Control, UnpackGivesWhatWasPacked) {
  ControlMessage message{};
  const nlohmann::json json{{"ask", "info"}, {"number", 7}};
  pack(json, message);
  EXPECT_EQ(unpack(message), json);
}

TEST(Control, WhatDoesNotFitIsRefused) {
  ControlMessage message{};
  try {
    pack({{"ask", std::string(sizeof(message), 'x')}}, message);
    FAIL() << "packed";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EMSGSIZE);
  }
}

TEST(Control, BytesThatAreNoUtf8AreReplaced) {
  ControlMessage message{};
  pack({{"base", "/srv/\xff.img"}}, message);
  EXPECT_EQ(unpack(message)["base"], "/srv/\xef\xbf\xbd.img");
}

TEST(Control, TextThatIsNoJsonObjectIsRefused) {
  for (const std::string& text : {std::string(), std::string("[1]"), std::string("{\"ask\":"),
                                  std::string(sizeof(ControlMessage::text), '{')}) {
    ControlMessage message{};
    std::copy(text.begin(), text.end(), message.text.begin());
    EXPECT_THROW(unpack(message), Error) << text.substr(0, 20);
  }
}

TEST(Control, AFileElsewhereIsNotInAMount) {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("cowfs-control-test-" + std::to_string(::getpid()));
  std::ofstream(path) << "x";
  try {
    ask_server(path);
    ADD_FAILURE() << "answered";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ENOTTY);
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace cowfs
