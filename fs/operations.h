#pragma once

struct fuse_lowlevel_ops;

namespace cowfs {

/// The table of operations for libfuse; the session's user data is a FileSystem. Each decodes its
/// request, makes one call and sends one reply.
const fuse_lowlevel_ops& operations();

// Parts of the table, by file.
void add_name_operations(fuse_lowlevel_ops& table);       // operations_names.cc
void add_attribute_operations(fuse_lowlevel_ops& table);  // operations_attributes.cc
void add_data_operations(fuse_lowlevel_ops& table);
void add_control_operations(fuse_lowlevel_ops& table);  // operations_data.cc

}  // namespace cowfs
