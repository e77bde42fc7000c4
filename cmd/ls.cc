#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <nlohmann/json.hpp>

#include "cmd/command.h"
#include "cmd/command_line.h"
#include "cmd/facts.h"
#include "cmd/sizes.h"
#include "cmd/table.h"
#include "cmd/target.h"
#include "store/error.h"

namespace cowfs {
namespace {

constexpr HelpTexts kLsHelp{
    .command = "ls",
    .usage = "[OPTION]... [DIR|IMAGE]...",
    .what =
        "Lists the images of the mounts DIR, or the IMAGEs: virtual size, bytes of their own, "
        "which\n"
        "part that is, when they were modified and created, and who has them open. With --store, "
        "of\n"
        "a store that is not mounted. Without arguments, this host's cowfs mounts.",
    .examples =
        "  cowfs ls\n"
        "  cowfs ls /mnt/vms\n"
        "  cowfs ls --json /mnt/vms/dom1.img\n"
        "  cowfs ls --store /srv/base.img.cowfs\n"};

// ---- mounts ------------------------------------------------------------------------------------

struct MountRow {
  MountEntry entry;
  nlohmann::json facts;  ///< empty: unknown
  const char* state;
};

std::vector<MountRow> host_mounts() {
  std::vector<MountRow> rows;
  for (const MountEntry& entry : mounts()) {
    if (!is_cowfs(entry)) continue;
    try {
      rows.push_back({entry, mount_facts(entry), "serving"});
    } catch (const Error& error) {
      // Else it is hidden below another mount, or not ours to look into.
      const char* state = is_dead_server(error.code()) ? "dead"
                          : keeper_that_gave_up(entry) ? "given up"
                                                       : "serving";
      rows.push_back({entry, nlohmann::json::object(), state});
    }
  }
  return rows;
}

void print_mounts(bool json) {
  const std::vector<MountRow> rows = host_mounts();
  Json list = Json::array();
  Table table({{"MOUNT"},
               {"BASE"},
               {"STORE"},
               {"IMAGES", Table::Align::right},
               {"FREE", Table::Align::right},
               {"STATE"}});
  const auto shown = [](const nlohmann::json& value) {
    return value.is_string() ? value.get<std::string>() : std::string("-");
  };
  for (const MountRow& row : rows) {
    const auto fact = [&](const char* key) { return row.facts.value(key, nlohmann::json()); };
    const std::string base = row.facts.value("base", row.entry.source);
    list.push_back({{"mount", row.entry.point},
                    {"base", base},
                    {"store", fact("store")},
                    {"images", fact("images")},
                    {"free_bytes", fact("free_bytes")},
                    {"state", row.state}});
    table.add_row(
        {row.entry.point, base, shown(fact("store")),
         row.facts.contains("images") ? fact("images").dump() : "-",
         fact("free_bytes").is_number() ? format_size(fact("free_bytes").get<uint64_t>()) : "-",
         row.state});
  }
  if (json) {
    print_json(list);
  } else if (rows.empty()) {
    fmt::print("no cowfs mounts\n");
  } else {
    fmt::print("{}", table.text());
  }
}

// ---- images ------------------------------------------------------------------------------------

/// What is listed: the facts, and the name to show.
struct ImageLine {
  std::string shown;
  ImageFacts facts;
};

std::string users_text(const std::vector<User>& users) {
  std::string text;
  for (const User& user : users) {
    if (!text.empty()) text += ", ";
    text += user.kind == User::Kind::loop ? user.device
                                          : fmt::format("{} ({})", user.pid, user.command);
  }
  return text.empty() ? "-" : text;
}

std::string private_text(const ImageFacts& facts) {
  const double percent = private_percent(facts.own_bytes, facts.size);
  const std::string text = fmt::format("{:5.1f}%", percent);
  return on_terminal() ? percent_bar(percent) + " " + text : text;
}

void print_images(const std::vector<ImageLine>& lines, bool json) {
  Json list = Json::array();
  std::vector<Table::Column> columns{{"NAME"},
                                     {"SIZE", Table::Align::right},
                                     {"OWN", Table::Align::right},
                                     {"PRIVATE", Table::Align::right},
                                     {"MODIFIED"},
                                     {"CREATED"},
                                     {"USED BY"}};
  const bool any_failed = std::any_of(lines.begin(), lines.end(), [](const ImageLine& line) {
    return line.facts.failure.has_value();
  });
  if (any_failed) columns.push_back({"STATE"});
  Table table(columns);
  for (const auto& [shown, facts] : lines) {
    if (json) {
      list.push_back(to_json(facts));
      continue;
    }
    std::vector<std::string> row{shown,
                                 format_size(facts.size),
                                 format_size(facts.own_bytes),
                                 private_text(facts),
                                 format_time(facts.modified_ns),
                                 facts.created_ns ? format_time(*facts.created_ns) : "-",
                                 users_text(facts.users)};
    if (any_failed) row.emplace_back(facts.failure ? "failed" : "ok");
    table.add_row(row);
  }
  if (json) {
    print_json(list);
  } else {
    fmt::print("{}", table.text());
  }
}

/// Scans the host for users once for each mount.
class Listing {
 public:
  /// `path` is a mount point or an image. Names are shown with their directory if there are several
  /// arguments.
  void add(const std::string& path, bool with_directory) {
    const std::string real = followed_path(path);
    const std::optional<MountEntry> mount = mount_at(real);
    if (mount && is_cowfs(*mount)) {
      require_alive(*mount);
      for (const std::string& name : image_names(*mount)) add_listed(*mount, name, with_directory);
      return;
    }
    struct stat status {};
    if (::stat(real.c_str(), &status) != 0) {
      const int code = errno;
      image_in_mount(path);  // tells of a dead server or a bad place first
      throw Error(code, path);
    }
    if (S_ISDIR(status.st_mode)) {
      throw Error::with_message(ENOTTY, path +
                                            ": is not a cowfs mount; of a store that is not "
                                            "mounted, say --store DIR");
    }
    const ImagePath image = image_in_mount(real);
    add_image(image.mount, image.name, with_directory);
  }

  [[nodiscard]] const std::vector<ImageLine>& lines() const { return lines_; }

 private:
  const Users& users(const MountEntry& mount) {
    auto found = users_.find(mount.device);
    if (found == users_.end()) {
      found = users_.emplace(mount.device, users_of_mount(mount.device)).first;
    }
    return found->second;
  }

  void add_image(const MountEntry& mount, const std::string& name, bool with_directory) {
    lines_.push_back(
        {with_directory ? mount.point + "/" + name : name, image_facts(mount, name, users(mount))});
  }

  void add_listed(const MountEntry& mount, const std::string& name, bool with_directory) {
    try {
      add_image(mount, name, with_directory);
    } catch (const Error& error) {
      if (error.code() != ENOENT) throw;  // removed meanwhile
    }
  }

  std::map<uint64_t, Users> users_;  // by st_dev
  std::vector<ImageLine> lines_;
};

std::vector<ImageLine> lines_of_store(const std::string& store, const Arguments& names) {
  const StoreSummary summary = read_store(store, false);
  std::vector<ImageLine> lines;
  for (const ImageRow& row : names.empty() ? named_images(summary) : named_images(summary, names)) {
    lines.push_back({*row.name, image_facts(summary, row)});
  }
  return lines;
}

}  // namespace

int run_ls(const Arguments& arguments) {
  Arguments paths;
  std::optional<std::string> store;
  bool json = false;
  CommandLine line(kLsHelp);
  line.arguments("PATH", paths, "mount points and images; with --store, names of images");
  line.option("--store", store, "DIR", "the store that is listed, while it is not mounted");
  line.flag("--json", json, "print JSON; cowfs-ls(1) has the keys");
  if (!line.parse(arguments)) return kDone;

  if (store) {
    print_images(lines_of_store(*store, paths), json);
  } else if (paths.empty()) {
    print_mounts(json);
  } else {
    Listing listing;
    for (const std::string& path : paths) listing.add(path, paths.size() > 1);
    print_images(listing.lines(), json);
  }
  return kDone;
}

}  // namespace cowfs
