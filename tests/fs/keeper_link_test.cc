#include "fs/keeper_link.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "fs/server_config.h"
#include "store/error.h"

namespace cowfs {
namespace {

/// The keeper's end of a socket, on which its first packet waits.
class KeeperLinkTest : public ::testing::Test {
 protected:
  KeeperLinkTest() { EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends_.data()), 0); }
  ~KeeperLinkTest() override { hang_up(); }
  void hang_up() {
    if (ends_[0] >= 0) ::close(std::exchange(ends_[0], -1));
  }
  void start(const std::string& text, int code, const std::vector<int>& descriptors = {}) const {
    EXPECT_TRUE(send_packet(
        ends_[0], {.say = Say::start, .code = code, .text = text, .descriptors = descriptors}));
  }
  std::array<int, 2> ends_{-1, -1};
};

TEST_F(KeeperLinkTest, FactsAndDescriptorsArriveByName) {
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  const int zero = ::open("/dev/zero", O_RDONLY | O_CLOEXEC);
  start(std::string(kHandOverName) +
            "\nkeeper 77\nrestarts 3\nlast_restart 5000000000000\nholds one\nholds two\n",
        kHandOverVersion, {null, zero});
  ::close(null);
  ::close(zero);
  KeeperLink link(ends_[1]);
  EXPECT_EQ(link.keeper(), 77);
  EXPECT_EQ(link.restarts(), 3U);
  EXPECT_EQ(link.last_restart_ns(), 5'000'000'000'000);
  ASSERT_TRUE(link.held("two"));
  char byte = 1;
  EXPECT_EQ(::read(link.held("one").value(), &byte, 1), 0);
  EXPECT_EQ(::read(link.held("two").value(), &byte, 1), 1);
  EXPECT_EQ(::fcntl(link.held("two").value(), F_GETFD), FD_CLOEXEC);
  EXPECT_FALSE(link.takes_over());
}

TEST_F(KeeperLinkTest, AnotherFormIsRefusedByNameAndVersion) {
  start("other hand-over\n", kHandOverVersion + 1);
  try {
    const KeeperLink link(ends_[1]);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EPROTONOSUPPORT);
    const std::string what = error.what();
    EXPECT_NE(what.find("other hand-over"), std::string::npos) << what;
    EXPECT_NE(what.find(std::to_string(kHandOverVersion + 1)), std::string::npos) << what;
  }
  ::close(ends_[1]);
}

TEST_F(KeeperLinkTest, AKeeperThatIsGoneIsNoticedAndNotTalkedTo) {
  start(std::string(kHandOverName) + "\nkeeper 77\n", kHandOverVersion);
  KeeperLink link(ends_[1]);
  link.say(Say::ready, 1);
  const std::optional<Packet> heard = receive_packet(ends_[0]);
  ASSERT_TRUE(heard);
  EXPECT_EQ(heard->say, Say::ready);
  EXPECT_EQ(heard->code, 1);
  hang_up();
  EXPECT_FALSE(link.listen());
  EXPECT_EQ(link.keeper(), 0);
  EXPECT_EQ(link.fd(), -1);
  link.say(Say::ended);
  link.hold("lock", 0);
}

TEST_F(KeeperLinkTest, AMountThatFailedIsTheKeepersError) {
  start(std::string(kHandOverName) + "\n", kHandOverVersion);
  KeeperLink link(ends_[1]);
  EXPECT_TRUE(send_packet(
      ends_[0], {.say = Say::not_mounted, .code = EPERM, .text = "no", .descriptors = {}}));
  try {
    link.mount({"ro", "fsname=a b"});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EPERM);
    EXPECT_STREQ(error.what(), "no");
  }
  EXPECT_EQ(receive_packet(ends_[0])->text, std::string("ro\0fsname=a b\0", 14));
}

TEST(ServerConfig, ComesThroughJsonAsItWas) {
  ServerConfig config;
  config.store.directory = "/srv/\xff\n,store";
  config.store.base_path = "/srv/base";
  config.store.chunk_size = 65536;
  config.store.create = true;
  config.mount_point = "/mnt/\xfe";
  config.uid = 7;
  config.umask = 022;
  config.full = FullMode::error;
  config.cache = CacheMode::none;
  config.watermarks = {50};
  config.on_watermark = "echo \"\xfd\"";
  config.fuse_options = {"nosuid", "fsname=\xfc"};
  const ServerConfig copy = server_config_from_json(nlohmann::json::parse(to_json(config).dump()));
  EXPECT_EQ(to_json(copy), to_json(config));
  EXPECT_EQ(copy.store.directory, config.store.directory);
  EXPECT_EQ(copy.fuse_options, config.fuse_options);
  EXPECT_EQ(copy.gid, std::nullopt);
  EXPECT_EQ(copy.cache, CacheMode::none);
}

TEST(ServerConfig, WhatIsNotUnderstoodIsRefused) {
  nlohmann::json json = to_json(ServerConfig{});
  json["uid"] = "root";
  EXPECT_THROW(server_config_from_json(json), Error);
  json.erase("uid");
  EXPECT_THROW(server_config_from_json(json), Error);
}

}  // namespace
}  // namespace cowfs
