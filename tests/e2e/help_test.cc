// --help and the man pages agree.

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <regex>
#include <set>
#include <sstream>

#include "tests/e2e/command.h"
#include "tests/e2e/data.h"

#ifndef COWFS_MAN_DIRECTORY
#define COWFS_MAN_DIRECTORY "man"
#endif

namespace cowfs::e2e {
namespace {

const std::vector<std::string> kCommands{"mount",   "umount", "sync", "create", "ls",
                                         "info",    "rm",     "mv",   "resize", "check",
                                         "restart", "limit",  "pool"};

Path ManPage(const std::string& command) {
  const bool for_root = command == "mount" || command == "check" || command == "restart";
  return Path(COWFS_MAN_DIRECTORY) / ("cowfs-" + command + (for_root ? ".8" : ".1"));
}

// The page as people read it: macros and font changes taken out, "\-" a "-".
std::string PlainText(const std::string& page) {
  std::string text = std::regex_replace(page, std::regex(R"(\\f(\[[A-Z]*\]|[A-Z]))"), "");
  text = std::regex_replace(text, std::regex(R"(\\-)"), "-");
  text = std::regex_replace(text, std::regex(R"(\bFl -)"), "--");  // mdoc(7)
  text = std::regex_replace(text, std::regex(R"(\.\\\"[^\n]*\n)"), "");
  return std::regex_replace(text, std::regex(R"(\\[&%/,|^])"), "");
}

// The sections with these headings.
std::string Sections(const std::string& page, const std::set<std::string>& headings) {
  std::istringstream lines(page);
  std::string kept;
  bool keep = false;
  const std::regex heading(R"(^\.S[Hh] \"?([^\"]*)\"?$)");
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (std::regex_match(line, match, heading)) {
      keep = headings.count(match[1]) > 0;
    } else if (keep) {
      kept += line + '\n';
    }
  }
  return kept;
}

std::set<std::string> LongOptions(const std::string& text) {
  const std::regex option(R"(--[a-z][a-z0-9]*(-[a-z0-9]+)*)");
  std::set<std::string> found;
  for (auto match = std::sregex_iterator(text.begin(), text.end(), option);
       match != std::sregex_iterator(); ++match) {
    const auto at = static_cast<size_t>(match->position());
    if (at == 0 || (text[at - 1] != '-' && std::isalnum(text[at - 1]) == 0)) {
      found.insert(match->str());
    }
  }
  return found;
}

std::string Joined(const std::set<std::string>& words) {
  std::string text;
  for (const std::string& word : words) {
    text += word + ' ';
  }
  return text;
}

std::set<std::string> Missing(const std::set<std::string>& wanted,
                              const std::set<std::string>& present) {
  std::set<std::string> missing;
  std::set_difference(wanted.begin(), wanted.end(), present.begin(), present.end(),
                      std::inserter(missing, missing.end()));
  return missing;
}

class Help : public testing::TestWithParam<std::string> {
 protected:
  static std::string Text() {
    const Result result = Cowfs({GetParam(), "--help"});
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_EQ(result.err, "");
    return result.out;
  }
};

TEST_P(Help, EveryOptionInHelpStandsInTheManPage) {
  ASSERT_TRUE(std::filesystem::exists(ManPage(GetParam()))) << ManPage(GetParam());
  const std::string page = PlainText(ReadFile(ManPage(GetParam())));
  EXPECT_EQ(Joined(Missing(LongOptions(Text()), LongOptions(Sections(page, {"OPTIONS"})))), "");
  EXPECT_EQ(Joined(Missing(LongOptions(Text()), LongOptions(page))), "");
}

TEST_P(Help, EveryOptionInTheManPageStandsInHelp) {
  ASSERT_TRUE(std::filesystem::exists(ManPage(GetParam()))) << ManPage(GetParam());
  const std::string page = PlainText(ReadFile(ManPage(GetParam())));
  EXPECT_EQ(
      Joined(Missing(LongOptions(Sections(page, {"SYNOPSIS", "OPTIONS"})), LongOptions(Text()))),
      "");
}

TEST_P(Help, HasAnExample) {
  EXPECT_TRUE(std::regex_search(Text(), std::regex("example", std::regex::icase))) << Text();
  EXPECT_TRUE(Mentions(Text(), "cowfs " + GetParam() + " "));
}

TEST_P(Help, JsonKeysStandInTheManPage) {
  const std::set<std::string> keys =
      GetParam() == "ls"
          ? std::set<std::string>{"name",       "size",    "own_bytes", "private_percent",
                                  "inode",      "mode",    "uid",       "gid",
                                  "modified",   "changed", "users",     "created",
                                  "mount",      "base",    "store",     "state",
                                  "free_bytes", "images",  "failure"}
      : GetParam() == "info"
          ? std::set<std::string>{"kind",           "mount",    "base",         "base_size",
                                  "base_written",   "store",    "chunk_size",   "policy",
                                  "format_version", "images",   "own_bytes",    "free_bytes",
                                  "total_bytes",    "cache",    "read_only",    "server_pid",
                                  "version",        "cow_file", "users",        "mounted_on",
                                  "full",           "parked",   "watermark",    "used_percent",
                                  "space_limit",    "failure",  "keeper_pid",   "restarts",
                                  "last_restart",   "sandbox",  "base_format",  "base_snapshot",
                                  "backing",        "pool",     "failed_images"}
      : GetParam() == "pool" ? std::set<std::string>{"pool",       "device",     "size",
                                                     "used_bytes", "free_bytes", "used_percent"}
      : GetParam() == "check"
          ? std::set<std::string>{"store", "mount",        "state",    "images",    "damage",
                                  "leaks", "leaked_bytes", "repaired", "findings",  "severity",
                                  "kind",  "image",        "layer",    "offset",    "length",
                                  "bytes", "what",         "remedy",   "repairable"}
          : std::set<std::string>{};
  if (keys.empty()) {
    return;
  }
  const std::string page = PlainText(ReadFile(ManPage(GetParam())));
  for (const std::string& key : keys) {
    EXPECT_TRUE(std::regex_search(page, std::regex("\\b" + key + "\\b"))) << key;
  }
}

INSTANTIATE_TEST_SUITE_P(Commands, Help, testing::ValuesIn(kCommands),
                         [](const testing::TestParamInfo<std::string>& command) {
                           return command.param;
                         });

TEST(Program, HelpListsEveryCommandAndSoDoesItsPage) {
  const std::string help = Must(Cowfs({"--help"}));
  const std::string page = PlainText(ReadFile(Path(COWFS_MAN_DIRECTORY) / "cowfs.1"));
  for (const std::string& command : kCommands) {
    EXPECT_TRUE(std::regex_search(help, std::regex("(^|\n) *" + command + "\\b"))) << command;
    EXPECT_TRUE(Mentions(page, "cowfs-" + command));
  }
}

TEST(Program, VersionIsOneLine) {
  const Result result = Cowfs({"--version"});
  EXPECT_EQ(result.status, 0);
  EXPECT_TRUE(std::regex_match(result.out, std::regex("cowfs \\d+\\.\\d+\\.\\d+\n"))) << result.out;
}

TEST(ManPages, AllAreThereAndWellFormed) {
  std::set<std::string> pages{"cowfs.1", "cowfs-format.5", "cowfs-consistency.7", "cowfs-policy.7"};
  for (const std::string& command : kCommands) {
    pages.insert(ManPage(command).filename().string());
  }
  for (const std::string& page : pages) {
    const Path path = Path(COWFS_MAN_DIRECTORY) / page;
    ASSERT_TRUE(std::filesystem::exists(path)) << path;
    const std::string text = ReadFile(path);
    EXPECT_TRUE(std::regex_search(text, std::regex(R"((^|\n)\.(TH|Dt) )"))) << page;
    EXPECT_TRUE(std::regex_search(text, std::regex(R"((^|\n)\.S[Hh] \"?NAME)"))) << page;
  }
}

}  // namespace
}  // namespace cowfs::e2e
