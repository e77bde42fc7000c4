#include "cmd/command_line.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>

namespace cowfs {
namespace {

/// --help as the man pages have it: the usage line as it was written, and of an option its names
/// and its value's.
class HelpFormatter : public CLI::Formatter {
 public:
  explicit HelpFormatter(const HelpTexts& texts) : texts_(texts) { column_width(22); }

  std::string make_usage(const CLI::App*, std::string) const override {
    return fmt::format("Usage: cowfs {}{}{}\n", texts_.command, *texts_.usage != '\0' ? " " : "",
                       texts_.usage);
  }
  std::string make_description(const CLI::App*) const override {
    return fmt::format("{}\n", texts_.what);
  }
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override {
    return make_usage(app, name) + "\n" + make_description(app) +
           CLI::Formatter::make_positionals(app) + CLI::Formatter::make_groups(app, mode) +
           fmt::format("\nExamples:\n{}\nExit status:\n{}\nThe manual page is cowfs-{}({}).\n",
                       texts_.examples, texts_.exit_status, texts_.command, texts_.section);
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    return option->get_positional() || option->get_type_name().empty()
               ? ""
               : " " + option->get_type_name();
  }

 private:
  const HelpTexts texts_;
};

}  // namespace

CommandLine::CommandLine(const HelpTexts& texts) : app_(std::make_unique<CLI::App>()) {
  app_->formatter(std::make_shared<HelpFormatter>(texts));
  app_->get_formatter()->label("Positionals", "Arguments");
  app_->set_help_flag("-h,--help", "print this and exit");
}

CommandLine::~CommandLine() = default;

void CommandLine::argument(const std::string& name, std::string& value, const std::string& help,
                           Needed needed) {
  app_->add_option(name, value, help)->type_name("")->required(needed == Needed::yes);
}

void CommandLine::arguments(const std::string& name, Arguments& values, const std::string& help,
                            Needed needed) {
  app_->add_option(name, values, help)->type_name("")->required(needed == Needed::yes);
}

void CommandLine::option(const std::string& names, std::string& target, const std::string& value,
                         const std::string& help) {
  app_->add_option(names, target, help)->type_name(value);
}

void CommandLine::option(const std::string& names, std::optional<std::string>& target,
                         const std::string& value, const std::string& help) {
  app_->add_option_function<std::string>(
          names, [&target](const std::string& text) { target = text; }, help)
      ->type_name(value);
}

void CommandLine::option(const std::string& names, Arguments& targets, const std::string& value,
                         const std::string& help) {
  app_->add_option(names, targets, help)
      ->type_name(value)
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void CommandLine::flag(const std::string& names, bool& target, const std::string& help) {
  app_->add_flag(names, target, help);
}

bool CommandLine::parse(const Arguments& arguments) {
  Arguments reversed(arguments.rbegin(), arguments.rend());
  try {
    app_->parse(reversed);
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app_->help());
    return false;
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  return true;
}

}  // namespace cowfs
