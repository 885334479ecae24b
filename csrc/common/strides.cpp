#include "common/strides.h"

#include <algorithm>
#include <utility>

namespace qdeq {
namespace {

// Torch's rule for the memory format that dequantize() gives its result (c10's is_channels_last_strides_2d and _3d).
bool like_channels_last(IntSpan sizes, IntSpan strides) {
    const auto dims = static_cast<int64_t>(sizes.size());
    if ((dims != 4 && dims != 5) || strides[1] == 0) return false;
    int64_t smallest = 0;
    for (int64_t step = 0; step < dims; ++step) {
        const int64_t d = step == 0 ? 1 : step == dims - 1 ? 0 : dims - step;
        if (sizes[d] == 0 || strides[d] < smallest) return false;
        if (d == 0 && smallest == strides[1]) return false;
        smallest = strides[d] * std::max<int64_t>(sizes[d], 1);
    }
    return true;
}

}  // namespace

Ints dense_strides(IntSpan sizes, bool channels_last) {
    Ints strides(sizes.size());
    int64_t step = 1;
    const auto set = [&](size_t d) {
        strides[d] = step;
        step *= std::max<int64_t>(sizes[d], 1);
    };
    if (channels_last) set(1);
    for (size_t d = sizes.size(); d-- > 0;)
        if (!channels_last || d != 1) set(d);
    return strides;
}

Ints fresh_strides(IntSpan sizes, IntSpan src_strides) {
    return dense_strides(sizes, like_channels_last(sizes, src_strides));
}

int64_t extent(IntSpan sizes, IntSpan strides) {
    int64_t last = 0;
    for (size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] == 0) return 0;
        last += (sizes[d] - 1) * strides[d];
    }
    return last + 1;
}

bool may_overlap_itself(IntSpan sizes, IntSpan strides) {
    std::vector<std::pair<int64_t, int64_t>> dims;
    for (size_t d = 0; d < sizes.size(); ++d)
        if (sizes[d] > 1) dims.emplace_back(strides[d], sizes[d]);
    std::sort(dims.begin(), dims.end());
    int64_t reach = 0;
    for (const auto& [stride, size] : dims) {
        if (stride <= reach) return true;
        reach += stride * (size - 1);
    }
    return false;
}

}  // namespace qdeq
