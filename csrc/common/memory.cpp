#include "common/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <initializer_list>

namespace qdeq {
namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kFreshAbove = 32 << 20;  // glibc's largest mmap threshold: anything above is mapped anew
constexpr int64_t kCacheIfUnknown = 32 << 20;

const pid_t kLoadedIn = getpid();

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

int64_t last_level_cache_bytes() {
    static const int64_t bytes = read_last_level_cache_bytes();
    return bytes;
}

bool larger_than_caches(int64_t bytes) {
    static const int64_t cache = last_level_cache_bytes();
    return bytes > (cache > 0 ? cache : kCacheIfUnknown);
}

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    if (bytes < kFreshAbove) return;
    const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
    const auto end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

bool threads_are_safe() { return getpid() == kLoadedIn; }

}  // namespace qdeq
