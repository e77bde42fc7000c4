#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cmd/command.h"

namespace CLI {
class App;
}  // namespace CLI

namespace cowfs {

/// The texts of a command's --help.
struct HelpTexts {
  const char* command;   ///< "ls"
  const char* usage;     ///< what follows `cowfs ls`
  const char* what;      ///< what it does, in a paragraph
  const char* examples;  ///< lines, each indented by two spaces
  const char* exit_status = "  0 done, 1 failed, 2 the command line makes no sense\n";
  int section = 1;  ///< of the manual
};

/// A command's parser: CLI11's, with --help in the same form for all commands. (Its header, which
/// is large, is for command_line.cc alone.)
class CommandLine {
 public:
  explicit CommandLine(const HelpTexts& texts);
  CommandLine(const CommandLine&) = delete;
  CommandLine& operator=(const CommandLine&) = delete;
  ~CommandLine();

  enum class Needed { yes, no };

  /// `name` is what the usage line calls it.
  void argument(const std::string& name, std::string& value, const std::string& help,
                Needed needed = Needed::yes);
  void arguments(const std::string& name, Arguments& values, const std::string& help,
                 Needed needed = Needed::no);
  /// `value` is what the help calls the option's value, "DIR" say.
  void option(const std::string& names, std::string& target, const std::string& value,
              const std::string& help);
  void option(const std::string& names, std::optional<std::string>& target,
              const std::string& value, const std::string& help);
  /// One that may be given again and again.
  void option(const std::string& names, Arguments& targets, const std::string& value,
              const std::string& help);
  void flag(const std::string& names, bool& target, const std::string& help);

  /// False if help was asked for; it is printed then. Throws UsageError.
  [[nodiscard]] bool parse(const Arguments& arguments);

 private:
  std::unique_ptr<CLI::App> app_;
};

}  // namespace cowfs
