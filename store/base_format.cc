#include "store/base_format.h"

#include <array>
#include <cstddef>
#include <utility>

#include "store/big_endian.h"

namespace cowfs {
namespace {

constexpr std::array<std::pair<BaseFormat, std::string_view>, 3> kBaseFormats{
    {{BaseFormat::raw, "raw"}, {BaseFormat::qcow2, "qcow2"}, {BaseFormat::qcow, "qcow"}}};

constexpr uint32_t kQcowMagic = 0x514649fb;  // "QFI\xfb"

}  // namespace

std::string_view format_name(BaseFormat format) {
  for (const auto& [known, name] : kBaseFormats) {
    if (known == format) return name;
  }
  return "unknown";
}

std::optional<BaseFormat> find_base_format(std::string_view name) {
  for (const auto& [format, known] : kBaseFormats) {
    if (known == name) return format;
  }
  return std::nullopt;
}

BaseFormat guess_base_format(const File& file) {
  struct {
    BigEndian<uint32_t> magic;
    BigEndian<uint32_t> version;
  } head;
  static_assert(sizeof(head) == 8);
  const size_t got = file.read(std::as_writable_bytes(std::span(&head, 1)), 0);
  if (got < sizeof(head) || head.magic != kQcowMagic) return BaseFormat::raw;
  // A version that nobody knows yet is not a raw disk either; the header's reader refuses it.
  return head.version == 1 ? BaseFormat::qcow : BaseFormat::qcow2;
}

}  // namespace cowfs
