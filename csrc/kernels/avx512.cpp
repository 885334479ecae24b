// AVX-512 F, BW and VL kernels: 16 floats at a time, a whole cache line per store.
#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own avx512 headers leave the unused operand of masked forms uninitialized, and say so once inlined here.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx2,f16c")
#endif

#include "kernels/scalar_codes.h"
#include "kernels/scalar_math.h"
#include "kernels/x86_bytes.h"
#include "kernels/x86_codes.h"

namespace qdeq {
namespace {

struct V {
    static constexpr int64_t kLanes = 16;
    static constexpr bool kHasMasks = true;
    struct First {
        __mmask16 lanes;
        explicit First(int64_t count) : lanes(static_cast<__mmask16>((1u << count) - 1)) {}  // 0 <= count <= 16
    };
    using F = __m512;
    struct Scales {
        __m512d low, high;
    };
    static F set1(float x) { return _mm512_set1_ps(x); }
    static F loadu(const float* p) { return _mm512_loadu_ps(p); }
    static F loadu(const float* p, First f) { return _mm512_maskz_loadu_ps(f.lanes, p); }
    static __m512i widen(const int8_t* p) {
        return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static __m512i widen(const uint8_t* p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static __m512i widen(const int32_t* p) { return _mm512_loadu_si512(p); }
    static __m128i bytes(const void* p, First f) { return _mm_maskz_loadu_epi8(f.lanes, p); }
    static __m512i widen(const int8_t* p, First f) { return _mm512_cvtepi8_epi32(bytes(p, f)); }
    static __m512i widen(const uint8_t* p, First f) { return _mm512_cvtepu8_epi32(bytes(p, f)); }
    static __m512i widen(const int32_t* p, First f) { return _mm512_maskz_loadu_epi32(f.lanes, p); }
    template <typename T, typename... First>
    static F load(const T* p, First... first) {
        return _mm512_cvtepi32_ps(widen(p, first...));
    }
    template <typename T, typename... First>
    static F load_sub(const T* p, int32_t z, First... first) {
        return _mm512_cvtepi32_ps(_mm512_sub_epi32(widen(p, first...), _mm512_set1_epi32(z)));
    }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static Scales broadcast(double s) { return {_mm512_set1_pd(s), _mm512_set1_pd(s)}; }
    static Scales load_doubles(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
    static Scales load_doubles(const double* p, First f) {
        return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(f.lanes), p),
                _mm512_maskz_loadu_pd(static_cast<__mmask8>(f.lanes >> 8), p + 8)};
    }
    static F mul_double(F x, const Scales& s) {
        const __m256 x_high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
        const __m512d low = _mm512_mul_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(x)), s.low);
        const __m512d high = _mm512_mul_pd(_mm512_cvtps_pd(x_high), s.high);
        const __m512d low_only = _mm512_castpd256_pd512(_mm256_castps_pd(_mm512_cvtpd_ps(low)));
        return _mm512_castpd_ps(_mm512_insertf64x4(low_only, _mm256_castps_pd(_mm512_cvtpd_ps(high)), 1));
    }
    static void storeu(float* p, F x) { _mm512_storeu_ps(p, x); }
    static void storeu(float* p, F x, First f) { _mm512_mask_storeu_ps(p, f.lanes, x); }
    static void stream(float* p, F x) { _mm512_stream_ps(p, x); }
};

#define QDEQ_ISA(name) name##_avx512
#include "kernels/vector_rows.inl"

void to_bfloat16(const float* src, uint16_t* dst, int64_t count, bool stream) {
    to_16bit<bfloat16_bits>(src, dst, count, stream, [](const float* in, uint16_t* out, bool past_caches) {
        const __m512 x = _mm512_loadu_ps(in);
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i y = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd), 16);
        y = _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC0));
        const __m256i packed = _mm512_cvtepi32_epi16(y);
        if (past_caches)
            _mm256_stream_si256(reinterpret_cast<__m256i*>(out), packed);
        else
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), packed);
    });
}

void to_float16(const float* src, uint16_t* dst, int64_t count, bool stream) {
    to_16bit<float16_bits>(src, dst, count, stream, [](const float* in, uint16_t* out, bool past_caches) {
        const __m256i packed = _mm512_cvtps_ph(_mm512_loadu_ps(in), _MM_FROUND_TO_NEAREST_INT);
        if (past_caches)
            _mm256_stream_si256(reinterpret_cast<__m256i*>(out), packed);
        else
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), packed);
    });
}

#include "kernels/vector_e4m3.inl"
#include "kernels/vector_nibbles.inl"

}  // namespace

#include "kernels/vector_table.inl"

const KernelSet kAvx512Kernels = QDEQ_KERNEL_SET("avx512");

}  // namespace qdeq

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
