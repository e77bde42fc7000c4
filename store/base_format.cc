#include "store/base_format.h"

#include <array>
#include <cstddef>
#include <span>
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

std::optional<UnreadFormat> guess_unread_format(const File& file) {
  constexpr std::string_view kConvert = "`qemu-img convert -O qcow2` makes a base of it";
  constexpr std::string_view kUnpack = "unpack it first";
  struct Mark {
    size_t at;
    std::string_view bytes;
    UnreadFormat format;
  };
  constexpr std::array kMarks{
      Mark{0, "KDMV", {"a VMDK image", kConvert}},
      Mark{0, "# Disk DescriptorFile", {"a VMDK image", kConvert}},
      Mark{64, "\xbe\xda\x10\x7f", {"a VDI image", kConvert}},
      Mark{0, "vhdxfile", {"a VHDX image", kConvert}},
      Mark{0, "conectix", {"a VHD image", kConvert}},
      Mark{0, std::string_view("QED\0", 4), {"a QED image", kConvert}},
      Mark{0, "\x1f\x8b\x08", {"a file packed by gzip", kUnpack}},
      Mark{0, std::string_view("\xfd\x37zXZ\0", 6), {"a file packed by xz", kUnpack}},
      Mark{0, "\x28\xb5\x2f\xfd", {"a file packed by zstd", kUnpack}},
      Mark{4, "1AY&SY", {"a file packed by bzip2", kUnpack}}};
  std::array<char, 128> head{};
  static_cast<void>(file.read(std::as_writable_bytes(std::span(head)), 0));
  const std::string_view text(head.data(), head.size());
  for (const Mark& mark : kMarks) {
    if (text.substr(mark.at).starts_with(mark.bytes)) return mark.format;
  }
  return std::nullopt;
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
