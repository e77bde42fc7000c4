#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "cmd/command.h"

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

/// A command's parser: CLI11's, with --help in the same form for all commands.
class CommandLine {
 public:
  explicit CommandLine(const HelpTexts& texts);

  /// For options and positional arguments that are not of the forms below.
  CLI::App& app() { return app_; }

  /// `name` is what the usage line calls it.
  CLI::Option* argument(const std::string& name, std::string& value, const std::string& help);
  CLI::Option* arguments(const std::string& name, Arguments& values, const std::string& help);
  /// `value` is what the help calls the option's value, "DIR" say.
  CLI::Option* option(const std::string& names, std::string& target, const std::string& value,
                      const std::string& help);
  CLI::Option* option(const std::string& names, std::optional<std::string>& target,
                      const std::string& value, const std::string& help);
  CLI::Option* flag(const std::string& names, bool& target, const std::string& help);

  /// False if help was asked for; it is printed then. Throws UsageError.
  [[nodiscard]] bool parse(const Arguments& arguments);

 private:
  CLI::App app_;
};

}  // namespace cowfs
