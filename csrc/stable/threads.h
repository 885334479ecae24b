// Running a StridedDequantizer on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "kernels/kernels.h"
#include "kernels/strided.h"
#include "memory.h"

namespace qdeq {

// Less output than this per thread costs more to hand out than it saves.
constexpr int64_t kBytesPerThread = 128 << 10;

inline void run_on_threads(const StridedDequantizer& work) {
    const int64_t bytes = work.out_bytes(), numel = work.numel();
    if (numel == 0) return;
    const KernelSet& kernels = current_kernels();
    const bool stream = larger_than_caches(bytes);
    if (bytes < 2 * kBytesPerThread || !threads_are_safe()) {
        work.run(0, numel, kernels, stream);
        return;
    }
    torch::stable::parallel_for(0, numel, numel / (bytes / kBytesPerThread),
                                [&](int64_t begin, int64_t end) { work.run(begin, end, kernels, stream); });
}

}  // namespace qdeq
