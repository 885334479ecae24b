// What qdeq._C lends to qdeq._torch, so that the kernels, the choice among them and the threads are there once.
#pragma once

#include "common/threads.h"
#include "kernels/kernels.h"
#include "kernels/strided.h"

namespace qdeq {

// The torch that an extension was built with. Both extensions of one build have the same; no other two go together.
constexpr const char* kBuiltFor = QDEQ_BUILT_WITH_TORCH " " QDEQ_BUILT_WITH_GIT;

struct Core {
    const char* built_for;
    int64_t size;  // of this struct
    const KernelSet& (*current_kernels)();
    void (*dequantize)(const Request& request);  // on torch's threads
    ParallelFor parallel_for;                    // likewise
    bool (*larger_than_caches)(int64_t bytes);
    void (*advise_huge_pages)(void* data, int64_t bytes);
};

constexpr const char* kCoreName = "qdeq._C.core";  // of the capsule that holds it

}  // namespace qdeq
