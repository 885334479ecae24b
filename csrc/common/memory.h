// What the operators ask of the system: huge pages, cache sizes, whether threads may be used. No torch header.
#pragma once

#include <cstdint>

namespace qdeq {

int64_t last_level_cache_bytes();  // 0 where the system does not say

// Results larger than this are written past the caches (non-temporal stores): they would not fit anyway.
bool larger_than_caches(int64_t bytes);

// Asks for huge pages in the part of [data, data + bytes) that has not been touched yet, where the result is so large
// that the allocator took fresh pages for it. A refusal changes nothing but the time.
void advise_huge_pages(void* data, int64_t bytes);

// A forked child has none of its parent's OpenMP threads but all of their state: a parallel region
// in it waits for ever. True in the process that loaded this module.
bool threads_are_safe();

}  // namespace qdeq
