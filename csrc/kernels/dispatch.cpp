// Which kernel sets run here and which one is used: the only file that asks which CPU this is.
#include <atomic>
#include <cstring>
#include <vector>

#include "kernels/kernels.h"

namespace qdeq {
namespace {

struct Sets {
    std::vector<const KernelSet*> sets;
    Sets() {
#if defined(__x86_64__)
        __builtin_cpu_init();
        // F16C has no name of its own here in older compilers; every CPU with AVX2 has it.
        const bool avx2 = __builtin_cpu_supports("avx2");
        if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl"))
            sets.push_back(&kAvx512Kernels);
        if (avx2) sets.push_back(&kAvx2Kernels);
#elif defined(__aarch64__)
        sets.push_back(&kNeonKernels);
#endif
        sets.push_back(&kScalarKernels);
    }
};

const Sets& available() {
    static const Sets sets;
    return sets;
}

std::atomic<const KernelSet*> forced{nullptr};

}  // namespace

int num_kernel_sets() { return static_cast<int>(available().sets.size()); }

const KernelSet& kernel_set(int index) { return *available().sets[static_cast<size_t>(index)]; }

const KernelSet& current_kernels() {
    const KernelSet* set = forced.load(std::memory_order_relaxed);
    return set != nullptr ? *set : *available().sets[0];
}

bool force_kernels(const char* name_or_null) {
    if (name_or_null == nullptr) {
        forced.store(nullptr, std::memory_order_relaxed);
        return true;
    }
    for (int i = 0; i < num_kernel_sets(); ++i) {
        if (std::strcmp(kernel_set(i).name, name_or_null) == 0) {
            forced.store(&kernel_set(i), std::memory_order_relaxed);
            return true;
        }
    }
    return false;
}

}  // namespace qdeq
