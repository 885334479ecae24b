// The byte vectors of vector_e4m3.inl for x86: 32 bytes of AVX2, in the AVX-512 set, too.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qdeq {
namespace {

struct B {
    static constexpr int64_t kBytes = 32;
    using U8 = __m256i;
    using U16 = __m256i;
    using F = __m256;

    // AVX2 zips within halves of 16 bytes: quarters 0 2 1 3 then come out in order.
    static U8 load(const uint8_t* p) {
        return _mm256_permute4x64_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), 0xD8);
    }
    // The 4-bit codes of kBytes / 2 bytes, low ones first.
    static U8 load_nibbles(const uint8_t* p) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), mask = _mm_set1_epi8(0xF);
        const __m128i even = _mm_and_si128(bytes, mask), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
        const __m128i first = _mm_unpacklo_epi8(even, odd), second = _mm_unpackhi_epi8(even, odd);
        return _mm256_set_m128i(_mm_unpackhi_epi64(first, second), _mm_unpacklo_epi64(first, second));
    }
    static U8 table(const uint8_t* p) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static U8 lookup(U8 table, U8 index) { return _mm256_shuffle_epi8(table, index); }
    static U8 set1(uint8_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
    static U8 and_(U8 a, U8 b) { return _mm256_and_si256(a, b); }
    static U8 or_(U8 a, U8 b) { return _mm256_or_si256(a, b); }
    static U8 min(U8 a, U8 b) { return _mm256_min_epu8(a, b); }
    static U8 eq(U8 a, U8 b) { return _mm256_cmpeq_epi8(a, b); }
    static bool any(U8 x) { return _mm256_testz_si256(x, x) == 0; }

    static void split(const uint16_t* x, uint16_t y, uint8_t* low, uint8_t* high) {
        const auto* from = reinterpret_cast<const __m128i*>(x);
        const __m128i first = _mm_loadu_si128(from);
        const __m128i second = _mm_sub_epi16(_mm_loadu_si128(from + 1), _mm_set1_epi16(static_cast<int16_t>(y)));
        const __m128i byte = _mm_set1_epi16(0xFF);
        const __m128i lows = _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(second, byte));
        const __m128i highs = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(low), lows);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(high), highs);
    }

    static U16 zip_low(U8 low, U8 high) { return _mm256_unpacklo_epi8(low, high); }
    static U16 zip_high(U8 low, U8 high) { return _mm256_unpackhi_epi8(low, high); }
    static U16 set1_16(uint16_t x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
    static U16 and_16(U16 a, U16 b) { return _mm256_and_si256(a, b); }
    static U16 add_16(U16 a, U16 b) { return _mm256_add_epi16(a, b); }
    static U16 shift_right_4(U16 x) { return _mm256_srai_epi16(x, 4); }
    static U16 select_16(U16 mask, U16 set, U16 clear) { return _mm256_blendv_epi8(clear, set, mask); }

    static F widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
    static F first_floats(U16 x) { return widen(_mm256_castsi256_si128(x)); }
    static F second_floats(U16 x) { return widen(_mm256_extracti128_si256(x, 1)); }
    static F set1_float(float x) { return _mm256_set1_ps(x); }
    static F load_floats(const float* p) { return _mm256_loadu_ps(p); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }

    static void put(uint16_t* p, U16 x, bool stream) {
        auto* to = reinterpret_cast<__m256i*>(p);
        stream ? _mm256_stream_si256(to, x) : _mm256_storeu_si256(to, x);
    }
    static __m256i rounded(F x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
    }
    static U16 round(F a, F b) { return _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded(a), rounded(b)), 0xD8); }
    static void put_halves(uint16_t* p, F x, bool stream) {
        const __m128i packed = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
        auto* to = reinterpret_cast<__m128i*>(p);
        stream ? _mm_stream_si128(to, packed) : _mm_storeu_si128(to, packed);
    }
    static void put(float* p, F x, bool stream) { stream ? _mm256_stream_ps(p, x) : _mm256_storeu_ps(p, x); }
};

}  // namespace
}  // namespace qdeq
