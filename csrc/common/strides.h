// Sizes and strides, in elements. No torch header.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace qdeq {

using Ints = std::vector<int64_t>;
using IntSpan = std::span<const int64_t>;

// Strides without gaps: channels (dimension 1) innermost, or in the order of the dimensions.
Ints dense_strides(IntSpan sizes, bool channels_last);

// Those that torch's dequantize() gives its result: channels_last if the source looks so, else contiguous.
Ints fresh_strides(IntSpan sizes, IntSpan src_strides);

// Elements between the first and one past the last.
int64_t extent(IntSpan sizes, IntSpan strides);

// Sufficient and cheap: false where, in order of stride, each dimension steps over everything inside it.
bool may_overlap_itself(IntSpan sizes, IntSpan strides);

}  // namespace qdeq
