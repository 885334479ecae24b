#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include "kernels/kernels.h"

namespace qdeq {
namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kFreshAbove = 32 << 20;  // glibc's largest mmap threshold: anything above is mapped anew
constexpr int64_t kCacheIfUnknown = 32 << 20;

const pid_t kLoadedIn = getpid();

}  // namespace

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
