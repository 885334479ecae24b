#pragma once

struct _object;

namespace qdeq {

// Adds dequantize_direct to the module.
void add_direct_entry(_object* module);

}  // namespace qdeq
