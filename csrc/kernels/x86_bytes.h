// Shuffles that every x86 kernel set shares: unpacking 4- and 2-bit values, transposing bytes and words, the store
// fence. SSE2 is enough for all but transpose_words, which needs AVX2.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

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

// 16 x 16 bytes in registers: four rounds that interleave row k with row k + 8.
inline void transpose_16x16(__m128i* a) {
    __m128i b[16];
    for (int round = 0; round < 4; ++round) {
        for (int k = 0; k < 8; ++k) {
            b[2 * k] = _mm_unpacklo_epi8(a[k], a[k + 8]);
            b[2 * k + 1] = _mm_unpackhi_epi8(a[k], a[k + 8]);
        }
        for (int k = 0; k < 16; ++k) a[k] = b[k];
    }
}

template <typename Word>
inline void copy_ends(const uint8_t* from, uint8_t* to, int64_t count) {  // sizeof(Word) <= count <= 2 * sizeof(Word)
    Word first, last;
    std::memcpy(&first, from, sizeof(Word));
    std::memcpy(&last, from + count - sizeof(Word), sizeof(Word));
    std::memcpy(to, &first, sizeof(Word));
    std::memcpy(to + count - sizeof(Word), &last, sizeof(Word));
}

// 1 <= count <= 16 bytes, and no others.
inline void copy_few(const uint8_t* from, uint8_t* to, int64_t count) {
    if (count >= 8)
        copy_ends<uint64_t>(from, to, count);
    else if (count >= 4)
        copy_ends<uint32_t>(from, to, count);
    else if (count >= 2)
        copy_ends<uint16_t>(from, to, count);
    else
        *to = *from;
}

// At most 16 x 16: the part of a block that lies inside the matrix.
inline void transpose_part(const uint8_t* src, int64_t src_stride, uint8_t* dst, int64_t dst_stride, int64_t num_rows,
                           int64_t num_cols) {
    alignas(16) uint8_t line[16] = {};
    __m128i a[16];
    for (int k = 0; k < 16; ++k) {
        if (k >= num_cols) {
            a[k] = _mm_setzero_si128();
        } else if (num_rows == 16) {
            a[k] = load_16(src + k * src_stride);
        } else {
            copy_few(src + k * src_stride, line, num_rows);
            a[k] = load_16(line);
        }
    }
    transpose_16x16(a);
    for (int64_t r = 0; r < num_rows; ++r) {
        store_16(line, a[r]);
        copy_few(line, dst + r * dst_stride, num_cols);
    }
}

void transpose_bytes(const uint8_t* src, int64_t src_stride, uint8_t* dst, int64_t dst_stride, int64_t num_rows,
                     int64_t num_cols) {
    // Each source row is another page for the hardware's prefetchers: ask for the lines two blocks ahead.
    constexpr int64_t kAhead = 32;
    for (int64_t c = 0; c < num_cols; c += 16) {
        for (int64_t k = c + kAhead; k < c + kAhead + 16 && k < num_cols; ++k)
            _mm_prefetch(reinterpret_cast<const char*>(src + k * src_stride), _MM_HINT_T0);
        for (int64_t r = 0; r < num_rows; r += 16) {
            const uint8_t* from = src + c * src_stride + r;
            uint8_t* to = dst + r * dst_stride + c;
            if (r + 16 > num_rows || c + 16 > num_cols) {
                transpose_part(from, src_stride, to, dst_stride, std::min<int64_t>(num_rows - r, 16),
                               std::min<int64_t>(num_cols - c, 16));
                continue;
            }
            __m128i a[16];
            for (int k = 0; k < 16; ++k) a[k] = load_16(from + k * src_stride);
            transpose_16x16(a);
            for (int k = 0; k < 16; ++k) store_16(to + k * dst_stride, a[k]);
        }
    }
}

inline void store_halves(uint8_t* low_row, uint8_t* high_row, __m256i values) {
    store_16(low_row, _mm256_castsi256_si128(values));
    store_16(high_row, _mm256_extracti128_si256(values, 1));
}

// Four words of each of eight rows.
inline void transpose_4x8_words(const uint8_t* src, int64_t src_stride, uint8_t* dst, int64_t dst_stride) {
    const auto load = [&](int64_t c) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + c * src_stride));
    };
    const __m256i word0_i32x8 = load(0), word1_i32x8 = load(1), word2_i32x8 = load(2), word3_i32x8 = load(3);
    const __m256i low01 = _mm256_unpacklo_epi32(word0_i32x8, word1_i32x8);   // rows 0 1 | 4 5
    const __m256i high01 = _mm256_unpackhi_epi32(word0_i32x8, word1_i32x8);  // rows 2 3 | 6 7
    const __m256i low23 = _mm256_unpacklo_epi32(word2_i32x8, word3_i32x8);
    const __m256i high23 = _mm256_unpackhi_epi32(word2_i32x8, word3_i32x8);
    store_halves(dst, dst + 4 * dst_stride, _mm256_unpacklo_epi64(low01, low23));
    store_halves(dst + dst_stride, dst + 5 * dst_stride, _mm256_unpackhi_epi64(low01, low23));
    store_halves(dst + 2 * dst_stride, dst + 6 * dst_stride, _mm256_unpacklo_epi64(high01, high23));
    store_halves(dst + 3 * dst_stride, dst + 7 * dst_stride, _mm256_unpackhi_epi64(high01, high23));
}

void transpose_words(const uint8_t* src, int64_t src_stride, uint8_t* dst, int64_t dst_stride, int64_t num_rows,
                     int64_t num_cols, const uint8_t* next) {
    int64_t c = 0;
    for (; c + 4 <= num_cols; c += 4) {
        for (int64_t byte = 0; byte < 4 * src_stride; byte += std::max<int64_t>(src_stride, 64))
            _mm_prefetch(reinterpret_cast<const char*>(next + c * src_stride + byte), _MM_HINT_T1);
        for (int64_t r = 0; r < num_rows; r += 8)
            transpose_4x8_words(src + c * src_stride + 4 * r, src_stride, dst + r * dst_stride + 4 * c, dst_stride);
    }
    for (; c < num_cols; ++c)
        for (int64_t r = 0; r < num_rows; ++r)
            std::memcpy(dst + r * dst_stride + 4 * c, src + c * src_stride + 4 * r, 4);
}

void fence() { _mm_sfence(); }

}  // namespace
}  // namespace qdeq
