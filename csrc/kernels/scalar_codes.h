// Codes one at a time, for the scalar set and for what a vector set has no shuffles for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/scalar_math.h"

namespace qdeq {
namespace {

template <OutType kOut>
inline void store_one(void* dst, int64_t i, float y) {
    if constexpr (kOut == kFloat32)
        static_cast<float*>(dst)[i] = y;
    else
        static_cast<uint16_t*>(dst)[i] = kOut == kBFloat16 ? bfloat16_bits(y) : float16_bits(y);
}

// Element `count` behind a pointer to results.
inline void* results_at(void* dst, int64_t count, OutType out) {
    return static_cast<char*>(dst) + count * (out == kFloat32 ? 4 : 2);
}

template <OutType kOut>
void dequantize_codes(const CodePanel& p) {
    for (int64_t r = 0; r < p.num_rows; ++r) {
        const uint8_t* src = p.src + r * p.src_row_stride;
        void* dst = results_at(p.dst, r * p.dst_row_stride, kOut);
        for (int64_t block = 0, i = 0; i < p.row_len; ++block) {
            const float scale = p.scale[block];
            const int64_t end = std::min(p.row_len - i, p.block_len) + i;
            for (; i < end; ++i) store_one<kOut>(dst, i, p.values[src[i]] * scale);
        }
    }
}

}  // namespace
}  // namespace qdeq
