// Which kernel sets run here and which one is used: the only file that asks about the machine.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>

#include "kernels/kernels.h"

namespace qdeq {
namespace {

struct Sets {
    const KernelSet* sets[4] = {};
    int count = 0;
    Sets() {
#if defined(__x86_64__)
        __builtin_cpu_init();
        // F16C has no name of its own here in older compilers; every CPU with AVX2 has it.
        const bool avx2 = __builtin_cpu_supports("avx2");
        if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl"))
            sets[count++] = &kAvx512Kernels;
        if (avx2) sets[count++] = &kAvx2Kernels;
#elif defined(__aarch64__)
        sets[count++] = &kNeonKernels;
#endif
        sets[count++] = &kScalarKernels;
    }
};

const Sets& available() {
    static const Sets sets;
    return sets;
}

std::atomic<const KernelSet*> forced{nullptr};

// The largest cache of the first CPU, as Linux describes it.
int64_t cache_bytes_from_sysfs() {
    int64_t largest = 0;
    for (int index = 0; index < 8; ++index) {
        char path[80];
        std::snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
        std::FILE* file = std::fopen(path, "r");
        if (file == nullptr) continue;
        long long size = 0;
        char unit = 0;
        const int fields = std::fscanf(file, "%lld%c", &size, &unit);
        std::fclose(file);
        if (fields < 1) continue;
        const int64_t bytes = size * (unit == 'M' ? 1 << 20 : unit == 'K' ? 1 << 10 : 1);
        if (bytes > largest) largest = bytes;
    }
    return largest;
}

int64_t read_last_level_cache_bytes() {
    const int64_t from_sysfs = cache_bytes_from_sysfs();
    if (from_sysfs > 0) return from_sysfs;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    // glibc derives this from CPUID; on virtual machines it has been seen ten times too large.
    for (const int name : {_SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
        const int64_t from_libc = sysconf(name);
        if (from_libc > 0) return from_libc;
    }
#endif
    return 0;
}

}  // namespace

int num_kernel_sets() { return available().count; }

const KernelSet& kernel_set(int index) { return *available().sets[index]; }

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

int64_t last_level_cache_bytes() {
    static const int64_t bytes = read_last_level_cache_bytes();
    return bytes;
}

}  // namespace qdeq
