#pragma once

#include <optional>
#include <string_view>

#include "store/file.h"

namespace cowfs {

/// How the bytes of a base, or of a backing file below it, are to be read.
enum class BaseFormat { raw, qcow2, qcow };

/// As in the catalog, on the command line and in qcow2 headers: "raw", "qcow2", "qcow".
std::string_view format_name(BaseFormat format);
std::optional<BaseFormat> find_base_format(std::string_view name);

/// By the first bytes of the file; raw where they say nothing. Only for who makes a store: what a
/// guest can write must not decide how its disk is read (CVE-2008-2004).
BaseFormat guess_base_format(const File& file);

/// One that cowfs does not read, and takes for raw.
struct UnreadFormat {
  std::string_view what;  ///< "a VMDK image"
  std::string_view way;   ///< what makes a base of it
};
/// By its first bytes; none if they say nothing. For a warning.
std::optional<UnreadFormat> guess_unread_format(const File& file);

}  // namespace cowfs
