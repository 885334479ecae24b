// Plain loops over bytes, for the scalar set and for those without shuffles of their own.
#pragma once

#include <cstdint>
#include <cstring>

namespace qdeq {
namespace {

void unpack_4bit(const uint8_t* src, uint8_t* dst, int64_t num_values) {
    for (int64_t i = 0; i < num_values; ++i) dst[i] = (src[i / 2] >> (i % 2 * 4)) & 0xF;
}

void unpack_2bit(const uint8_t* src, uint8_t* dst, int64_t num_values) {
    for (int64_t i = 0; i < num_values; ++i) dst[i] = (src[i / 4] >> (i % 4 * 2)) & 0x3;
}

void transpose_bytes(const uint8_t* src, int64_t src_stride, uint8_t* dst, int64_t dst_stride, int64_t num_rows,
                     int64_t num_cols) {
    for (int64_t r = 0; r < num_rows; ++r)
        for (int64_t c = 0; c < num_cols; ++c) dst[r * dst_stride + c] = src[c * src_stride + r];
}

void transpose_words(const uint8_t* src, int64_t src_stride, uint8_t* dst, int64_t dst_stride, int64_t num_rows,
                     int64_t num_cols, const uint8_t*) {
    for (int64_t c = 0; c < num_cols; ++c)
        for (int64_t r = 0; r < num_rows; ++r)
            std::memcpy(dst + r * dst_stride + 4 * c, src + c * src_stride + 4 * r, 4);
}

}  // namespace
}  // namespace qdeq
