// Work on torch's threads, by torch's stable ABI.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/grid.h"
#include "kernels/strided.h"

namespace qdeq {

// A ParallelFor.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// With the kernels in use.
void dequantize_on_threads(const Request& request);
void dequantize_grid_on_threads(const GridRequest& request);

}  // namespace qdeq
