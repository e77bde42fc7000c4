#include "fs/operations.h"

#include <fuse_lowlevel.h>

#include "fs/reply.h"

namespace cowfs {
namespace {

constexpr unsigned kMaxReadAhead = 4U << 20;
// The kernel keeps back what goes beyond it, of all images. Writes that wait for space count, and
// are not to stop others.
constexpr unsigned kMaxBackground = 32768;

void init(void* user_data, fuse_conn_info* connection) {
  const FileSystem& fs = *static_cast<FileSystem*>(user_data);
  const auto want = [&](unsigned capability, bool wanted) {
    connection->want &= ~capability;
    if (wanted) connection->want |= connection->capable & capability;
  };
  want(FUSE_CAP_WRITEBACK_CACHE, fs.writeback());
  want(FUSE_CAP_ASYNC_READ, true);
  want(FUSE_CAP_ASYNC_DIO, true);
  want(FUSE_CAP_PARALLEL_DIROPS, true);
  want(FUSE_CAP_IOCTL_DIR, true);
  want(FUSE_CAP_READDIRPLUS, true);
  want(FUSE_CAP_READDIRPLUS_AUTO, true);
  // Nobody changes an image behind the kernel's back.
  want(FUSE_CAP_AUTO_INVAL_DATA, false);
  // O_TRUNC of a file that is there comes as a change of its size: one way to truncate.
  want(FUSE_CAP_ATOMIC_O_TRUNC, false);
  // Splicing takes the base's pages out of the page cache: measured a hundred times slower.
  want(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE, false);
  want(FUSE_CAP_HANDLE_KILLPRIV, false);  // its successor is asked for; see session.cc
  connection->max_readahead = kMaxReadAhead;
  // libfuse wants to hear of this mount option here as well.
  if (fs.config().max_read) connection->max_read = *fs.config().max_read;
  connection->max_background = kMaxBackground;
  connection->congestion_threshold = kMaxBackground * 3 / 4;
  connection->time_gran = 1;
}

fuse_lowlevel_ops make_table() {
  fuse_lowlevel_ops table{};
  table.init = init;
  add_name_operations(table);
  add_attribute_operations(table);
  add_data_operations(table);
  add_control_operations(table);
  return table;
}

}  // namespace

const fuse_lowlevel_ops& operations() {
  static const fuse_lowlevel_ops table = make_table();
  return table;
}

}  // namespace cowfs
