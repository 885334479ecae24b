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

inline uint8_t code_at(const uint8_t* row, int64_t i, int bits) {
    const int64_t first = i * bits;
    const int shift = static_cast<int>(first % 8);
    unsigned code = row[first / 8] >> shift;
    if (shift + bits > 8) code |= static_cast<unsigned>(row[first / 8 + 1]) << (8 - shift);
    return static_cast<uint8_t>(code & ((1u << bits) - 1));
}

template <OutType kOut>
void dequantize_codes(const CodePanel& p) {
    for (int64_t r = 0; r < p.num_rows; ++r) {
        const uint8_t* src = p.src + r * p.src_row_stride;
        void* dst = results_at(p.dst, r * p.dst_row_stride, kOut);
        for (int64_t block = 0, i = 0; i < p.row_len; ++block) {
            const float scale = p.scale[block], zero = p.zero == nullptr ? 0.0f : p.zero[block];
            const int64_t end = std::min(p.row_len - i, p.block_len) + i;
            for (; i < end; ++i) store_one<kOut>(dst, i, (p.values[code_at(src, i, p.bits)] - zero) * scale);
        }
    }
}

}  // namespace
}  // namespace qdeq
