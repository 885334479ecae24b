#include "stable/threads.h"

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include "common/memory.h"
#include "kernels/kernels.h"

namespace qdeq {
namespace {

// Less output than this per thread costs more to hand out than it saves.
constexpr int64_t kBytesPerThread = 128 << 10;

}  // namespace

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    if (count <= grain || !threads_are_safe()) {
        if (count > 0) body(0, count);
        return;
    }
    const auto call = [](int64_t begin, int64_t end, void* context) {
        (*static_cast<const std::function<void(int64_t, int64_t)>*>(context))(begin, end);
    };
    STD_TORCH_CHECK(torch_parallel_for(0, count, grain, call, const_cast<void*>(static_cast<const void*>(&body))) == 0,
                    "qdeq: the parallel loop failed");
}

void dequantize_on_threads(const Request& request) {
    const StridedDequantizer work(request);
    const int64_t bytes = work.out_bytes(), numel = work.numel();
    const KernelSet& kernels = current_kernels();
    const bool stream = larger_than_caches(bytes);
    const int64_t threads = bytes / kBytesPerThread;
    parallel_for(numel, threads < 2 ? numel : numel / threads,
                 [&](int64_t begin, int64_t end) { work.run(begin, end, kernels, stream); });
}

void dequantize_grid_on_threads(const GridRequest& request) {
    const GridDequantizer work(request);
    const int64_t rows = work.num_rows(), bytes = rows * work.out_row_bytes();
    const KernelSet& kernels = current_kernels();
    const bool stream = larger_than_caches(bytes);
    const int64_t threads = bytes / kBytesPerThread;
    parallel_for(rows, threads < 2 ? rows : (rows + threads - 1) / threads,
                 [&](int64_t begin, int64_t end) { work.run(begin, end, kernels, stream); });
}

}  // namespace qdeq
