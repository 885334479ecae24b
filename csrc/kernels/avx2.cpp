// AVX2 and F16C kernels: 8 floats at a time. The byte shuffles below need only SSE2 and also serve AVX-512.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c")
#endif

#include "kernels/scalar_codes.h"
#include "kernels/scalar_math.h"
#include "kernels/x86_bytes.h"
#include "kernels/x86_codes.h"

namespace qdeq {
namespace {

struct V {
    static constexpr int64_t kLanes = 8;
    static constexpr bool kHasMasks = false;
    using F = __m256;
    struct Scales {
        __m256d low, high;
    };
    static F set1(float x) { return _mm256_set1_ps(x); }
    static F loadu(const float* p) { return _mm256_loadu_ps(p); }
    static __m256i widen(const int8_t* p) {
        return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }
    static __m256i widen(const uint8_t* p) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }
    static __m256i widen(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    template <typename T>
    static F load(const T* p) {
        return _mm256_cvtepi32_ps(widen(p));
    }
    template <typename T>
    static F load_sub(const T* p, int32_t z) {
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(widen(p), _mm256_set1_epi32(z)));
    }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static Scales broadcast(double s) { return {_mm256_set1_pd(s), _mm256_set1_pd(s)}; }
    static Scales load_doubles(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
    static F mul_double(F x, const Scales& s) {
        const __m256d low = _mm256_mul_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(x)), s.low);
        const __m256d high = _mm256_mul_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)), s.high);
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(low)), _mm256_cvtpd_ps(high), 1);
    }
    static void storeu(float* p, F x) { _mm256_storeu_ps(p, x); }
    static void stream(float* p, F x) { _mm256_stream_ps(p, x); }
};

#define QDEQ_ISA(name) name##_avx2
#include "kernels/vector_rows.inl"

void to_bfloat16(const float* src, uint16_t* dst, int64_t count, bool stream) {
    to_16bit<bfloat16_bits>(src, dst, count, stream, [](const float* in, uint16_t* out, bool past_caches) {
        const __m256 x = _mm256_loadu_ps(in);
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        __m256i y = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd), 16);
        const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        y = _mm256_blendv_epi8(y, _mm256_set1_epi32(0x7FC0), is_nan);
        const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
        if (past_caches)
            _mm_stream_si128(reinterpret_cast<__m128i*>(out), packed);
        else
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out), packed);
    });
}

void to_float16(const float* src, uint16_t* dst, int64_t count, bool stream) {
    to_16bit<float16_bits>(src, dst, count, stream, [](const float* in, uint16_t* out, bool past_caches) {
        const __m128i packed = _mm256_cvtps_ph(_mm256_loadu_ps(in), _MM_FROUND_TO_NEAREST_INT);
        if (past_caches)
            _mm_stream_si128(reinterpret_cast<__m128i*>(out), packed);
        else
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out), packed);
    });
}

#include "kernels/vector_e4m3.inl"
#include "kernels/vector_nibbles.inl"

}  // namespace

#include "kernels/vector_table.inl"

const KernelSet kAvx2Kernels = QDEQ_KERNEL_SET("avx2");

}  // namespace qdeq

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
