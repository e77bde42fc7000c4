#include "cmd/mount_options.h"

#include <gtest/gtest.h>

#include "cmd/command.h"
#include "store/error.h"

namespace cowfs {
namespace {

using Lists = std::vector<std::string>;

MountOptions Parse(const Lists& lists) { return parse_mount_options(lists, false); }

TEST(MountOptions, DefaultsAreThoseOfTheCaller) {
  const MountOptions options = Parse({});
  EXPECT_FALSE(options.read_only);
  EXPECT_FALSE(options.allow_other);
  EXPECT_FALSE(options.uid || options.gid || options.umask);
  EXPECT_EQ(options.cache, CacheMode::writeback);
  EXPECT_TRUE(options.tune);
  EXPECT_TRUE(options.fuse.empty());
  EXPECT_TRUE(parse_mount_options({}, true).allow_other);
}

TEST(MountOptions, OwnOnesAreUnderstood) {
  const MountOptions options =
      Parse({"ro,allow_other,uid=1000,gid=0,umask=027,cache=none,no_tune,max_read=65536"});
  EXPECT_TRUE(options.read_only);
  EXPECT_TRUE(options.allow_other);
  EXPECT_EQ(options.uid, 1000U);
  EXPECT_EQ(options.gid, 0U);
  EXPECT_EQ(options.umask, 027U);
  EXPECT_EQ(options.max_read, 65536U);
  EXPECT_EQ(options.cache, CacheMode::none);
  EXPECT_FALSE(options.tune);
  EXPECT_EQ(Parse({"cache=writeback"}).cache, CacheMode::writeback);
}

TEST(MountOptions, TuningIsCarefulAlwaysOrNot) {
  EXPECT_TRUE(Parse({}).tune && !Parse({}).tune_always);
  EXPECT_TRUE(Parse({"tune"}).tune && Parse({"tune"}).tune_always);
  EXPECT_FALSE(Parse({"tune,no_tune"}).tune || Parse({"tune,no_tune"}).tune_always);
}

TEST(MountOptions, WhatHappensOnAFullDiskCanBeChosen) {
  EXPECT_FALSE(Parse({}).full);
  EXPECT_EQ(Parse({"full=wait"}).full, FullMode::wait);
  EXPECT_EQ(Parse({"full=wait,full=error"}).full, FullMode::error);
  EXPECT_FALSE(Parse({}).watermarks);
  EXPECT_EQ(Parse({"watermarks=95:50"}).watermarks, (std::vector<unsigned>{95, 50}));
  EXPECT_EQ(Parse({"watermarks=none"}).watermarks, std::vector<unsigned>());
  EXPECT_EQ(Parse({R"(on_watermark="mail -s a,b root")"}).on_watermark, "mail -s a,b root");
  for (const char* bad : {"full", "full=", "full=maybe", "watermarks", "watermarks=",
                          "watermarks=0", "watermarks=101", "watermarks=80:", "watermarks=80,90x",
                          "watermarks=a", "watermarks=80 90", "on_watermark", "on_watermark="}) {
    EXPECT_ANY_THROW(Parse({bad})) << bad;
  }
}

TEST(MountOptions, TheLastOfSeveralCounts) {
  EXPECT_FALSE(Parse({"ro", "rw"}).read_only);
  EXPECT_TRUE(Parse({"rw,ro"}).read_only);
  EXPECT_EQ(Parse({"uid=1,uid=2", "uid=3"}).uid, 3U);
  const MountOptions root = parse_mount_options({"allow_root"}, true);
  EXPECT_FALSE(root.allow_other);
  EXPECT_EQ(root.fuse, Lists{"allow_root"});
  EXPECT_TRUE(Parse({"allow_root,allow_other"}).allow_other);
  EXPECT_TRUE(Parse({"allow_root,allow_other"}).fuse.empty());
}

TEST(MountOptions, FusesOwnArePassedOnInOrder) {
  EXPECT_EQ(Parse({"nosuid,noexec", "fsname=golden,debug"}).fuse,
            (Lists{"nosuid", "noexec", "fsname=golden", "debug"}));
}

TEST(MountOptions, WhatIsMeantForOthersIsPassedOver) {
  const MountOptions options =
      Parse({"defaults,rw,auto,noauto,user,users,nouser,owner,group,_netdev,nofail,user=joe",
             "x-systemd.after=network.target,comment=a b,X-mount.mkdir", "", ",,"});
  EXPECT_TRUE(options.fuse.empty());
  EXPECT_FALSE(options.read_only);
}

TEST(MountOptions, QuotedValuesMayHoldCommas) {
  EXPECT_EQ(Parse({R"(context="system_u:object_r:x:s0:c1,c2",nodev)"}).fuse,
            (Lists{R"(context=system_u:object_r:x:s0:c1\,c2)", "nodev"}));
  EXPECT_TRUE(Parse({R"(x-what="a,b,ro",noatime)"}).fuse == Lists{"noatime"});
  EXPECT_THROW(Parse({R"(context="a,b)"}), UsageError);
}

TEST(MountOptions, UnknownOnesAreRefusedByName) {
  for (const char* option : {"frobnicate", "ro=1", "no_tune=yes", "remount", "nonempty",
                             "allow_other=1", "=", "RO", " ro"}) {
    EXPECT_THROW(Parse({std::string("ro,") + option}), UsageError) << option;
  }
  try {
    Parse({"ro,frobnicate=7,rw"});
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("frobnicate=7"), std::string::npos);
  }
}

TEST(MountOptions, BadValuesAreRefused) {
  for (const char* option :
       {"uid", "uid=", "uid=joe", "uid=-1", "uid=4294967295", "uid=99999999999", "gid=1x",
        "umask=8", "umask=1777", "umask=", "cache", "cache=", "cache=auto", "subtype=other"}) {
    EXPECT_THROW(Parse({option}), UsageError) << option;
  }
  EXPECT_TRUE(Parse({"subtype=cowfs"}).fuse.empty());
}

TEST(MountOptions, ABadValueIsQuotedAsAWhole) {
  for (const std::string option :
       {"watermarks=80:", "watermarks=80:x:95", "watermarks=0:80", "uid=joe", "full=maybe"}) {
    try {
      Parse({option});
      FAIL() << option;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find("'" + option + "'"), std::string::npos)
          << error.what();
    }
  }
}

}  // namespace
}  // namespace cowfs
