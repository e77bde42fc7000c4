#include "store/unpack.h"

#include <libdeflate.h>
#include <zstd.h>

#include <cerrno>
#include <memory>

#include "store/error.h"

namespace cowfs {
namespace {

bool unpack_deflate(std::span<const std::byte> packed, std::span<std::byte> bytes) {
  // Kept from call to call: making it costs as much as a small cluster. QEMU packs with a window of
  // 4 KiB; whoever takes a larger one is read as well.
  struct Free {
    void operator()(libdeflate_decompressor* state) const { ::libdeflate_free_decompressor(state); }
  };
  thread_local const std::unique_ptr<libdeflate_decompressor, Free> state(
      ::libdeflate_alloc_decompressor());
  if (state == nullptr) throw Error(ENOMEM, "decompression");
  return ::libdeflate_deflate_decompress(state.get(), packed.data(), packed.size(), bytes.data(),
                                         bytes.size(), nullptr) == LIBDEFLATE_SUCCESS;
}

bool unpack_zstd(std::span<const std::byte> packed, std::span<std::byte> bytes) {
  // Frame by frame, each into its place: the decoder needs no window of its own, which may be as
  // large as a frame says.
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ::ZSTD_freeDCtx(context); }
  };
  thread_local const std::unique_ptr<ZSTD_DCtx, Free> context(::ZSTD_createDCtx());
  if (context == nullptr) throw Error(ENOMEM, "decompression");
  while (!bytes.empty()) {
    const size_t frame = ::ZSTD_findFrameCompressedSize(packed.data(), packed.size());
    if (::ZSTD_isError(frame) != 0U || frame == 0) return false;
    const size_t got =
        ::ZSTD_decompressDCtx(context.get(), bytes.data(), bytes.size(), packed.data(), frame);
    if (::ZSTD_isError(got) != 0U) return false;
    packed = packed.subspan(frame);
    bytes = bytes.subspan(got);
  }
  return true;
}

}  // namespace

bool unpack(Packing packing, std::span<const std::byte> packed, std::span<std::byte> bytes) {
  return packing == Packing::zstd ? unpack_zstd(packed, bytes) : unpack_deflate(packed, bytes);
}

}  // namespace cowfs
