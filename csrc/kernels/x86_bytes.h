// Byte shuffles that every x86 kernel set shares: unpacking 4- and 2-bit values, transposing bytes, the store fence.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qdeq {
namespace {

inline __m128i load_16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline void store_16(uint8_t* p, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x); }

void unpack_4bit(const uint8_t* src, uint8_t* dst, int64_t num_values) {
    const __m128i mask = _mm_set1_epi8(0xF);
    int64_t i = 0;
    for (; i + 32 <= num_values; i += 32) {
        const __m128i x = load_16(src + i / 2);
        const __m128i even = _mm_and_si128(x, mask);
        const __m128i odd = _mm_and_si128(_mm_srli_epi16(x, 4), mask);
        store_16(dst + i, _mm_unpacklo_epi8(even, odd));
        store_16(dst + i + 16, _mm_unpackhi_epi8(even, odd));
    }
    for (; i < num_values; ++i) dst[i] = (src[i / 2] >> (i % 2 * 4)) & 0xF;
}

void unpack_2bit(const uint8_t* src, uint8_t* dst, int64_t num_values) {
    const __m128i mask = _mm_set1_epi8(0x3);
    int64_t i = 0;
    for (; i + 64 <= num_values; i += 64) {
        const __m128i x = load_16(src + i / 4);
        const __m128i v0 = _mm_and_si128(x, mask);
        const __m128i v1 = _mm_and_si128(_mm_srli_epi16(x, 2), mask);
        const __m128i v2 = _mm_and_si128(_mm_srli_epi16(x, 4), mask);
        const __m128i v3 = _mm_and_si128(_mm_srli_epi16(x, 6), mask);
        const __m128i v01_low = _mm_unpacklo_epi8(v0, v1), v01_high = _mm_unpackhi_epi8(v0, v1);
        const __m128i v23_low = _mm_unpacklo_epi8(v2, v3), v23_high = _mm_unpackhi_epi8(v2, v3);
        store_16(dst + i, _mm_unpacklo_epi16(v01_low, v23_low));
        store_16(dst + i + 16, _mm_unpackhi_epi16(v01_low, v23_low));
        store_16(dst + i + 32, _mm_unpacklo_epi16(v01_high, v23_high));
        store_16(dst + i + 48, _mm_unpackhi_epi16(v01_high, v23_high));
    }
    for (; i < num_values; ++i) dst[i] = (src[i / 4] >> (i % 4 * 2)) & 0x3;
}

// 16 x 16 bytes: four rounds that interleave row k with row k + 8.
inline void transpose_16x16(const uint8_t* src, int64_t src_stride, uint8_t* dst, int64_t dst_stride) {
    __m128i a[16], b[16];
    for (int k = 0; k < 16; ++k) a[k] = load_16(src + k * src_stride);
    for (int round = 0; round < 4; ++round) {
        for (int k = 0; k < 8; ++k) {
            b[2 * k] = _mm_unpacklo_epi8(a[k], a[k + 8]);
            b[2 * k + 1] = _mm_unpackhi_epi8(a[k], a[k + 8]);
        }
        for (int k = 0; k < 16; ++k) a[k] = b[k];
    }
    for (int k = 0; k < 16; ++k) store_16(dst + k * dst_stride, a[k]);
}

void transpose_bytes(const uint8_t* src, int64_t src_stride, uint8_t* dst, int64_t dst_stride, int64_t num_rows,
                     int64_t num_cols) {
    const int64_t full_rows = num_rows / 16 * 16, full_cols = num_cols / 16 * 16;
    // Each source row is another page for the hardware's prefetchers: ask for the lines two blocks ahead.
    constexpr int64_t kAhead = 32;
    for (int64_t c = 0; c < full_cols; c += 16) {
        for (int64_t k = c + kAhead; k < c + kAhead + 16 && k < num_cols; ++k)
            _mm_prefetch(reinterpret_cast<const char*>(src + k * src_stride), _MM_HINT_T0);
        for (int64_t r = 0; r < full_rows; r += 16)
            transpose_16x16(src + c * src_stride + r, src_stride, dst + r * dst_stride + c, dst_stride);
    }
    for (int64_t r = 0; r < num_rows; ++r)
        for (int64_t c = r < full_rows ? full_cols : 0; c < num_cols; ++c)
            dst[r * dst_stride + c] = src[c * src_stride + r];
}

void fence() { _mm_sfence(); }

}  // namespace
}  // namespace qdeq
