// NEON kernels: 4 floats at a time. Every aarch64 CPU has NEON. There are no non-temporal vector stores to ask for:
// "stream" stores normally.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/scalar_bytes.h"
#include "kernels/scalar_codes.h"
#include "kernels/scalar_math.h"

namespace qdeq {
namespace {

struct V {
    static constexpr int64_t kLanes = 4;
    static constexpr bool kHasMasks = false;
    using F = float32x4_t;
    struct Scales {
        float64x2_t low, high;
    };
    static F set1(float x) { return vdupq_n_f32(x); }
    static F loadu(const float* p) { return vld1q_f32(p); }
    // Four bytes, no more: a wider load could read past the end.
    static int32x4_t widen(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, sizeof(four));
        return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
    }
    static int32x4_t widen(const uint8_t* p) {
        uint32_t four;
        std::memcpy(&four, p, sizeof(four));
        return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
    }
    static int32x4_t widen(const int32_t* p) { return vld1q_s32(p); }
    template <typename T>
    static F load(const T* p) {
        return vcvtq_f32_s32(widen(p));
    }
    template <typename T>
    static F load_sub(const T* p, int32_t z) {
        return vcvtq_f32_s32(vsubq_s32(widen(p), vdupq_n_s32(z)));
    }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static Scales broadcast(double s) { return {vdupq_n_f64(s), vdupq_n_f64(s)}; }
    static Scales load_doubles(const double* p) { return {vld1q_f64(p), vld1q_f64(p + 2)}; }
    static F mul_double(F x, const Scales& s) {
        const float64x2_t low = vmulq_f64(vcvt_f64_f32(vget_low_f32(x)), s.low);
        const float64x2_t high = vmulq_f64(vcvt_high_f64_f32(x), s.high);
        return vcvt_high_f32_f64(vcvt_f32_f64(low), high);
    }
    static void storeu(float* p, F x) { vst1q_f32(p, x); }
    static void stream(float* p, F x) { vst1q_f32(p, x); }
};

#define QDEQ_ISA(name) name##_neon
#include "kernels/vector_rows.inl"

void to_bfloat16(const float* src, uint16_t* dst, int64_t count, bool stream) {
    to_16bit<bfloat16_bits>(src, dst, count, stream, [](const float* in, uint16_t* out, bool) {
        const float32x4_t x = vld1q_f32(in);
        const uint32x4_t bits = vreinterpretq_u32_f32(x);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd), 16);
        vst1_u16(out, vmovn_u32(vbslq_u32(vceqq_f32(x, x), rounded, vdupq_n_u32(0x7FC0))));
    });
}

void to_float16(const float* src, uint16_t* dst, int64_t count, bool stream) {
    to_16bit<float16_bits>(src, dst, count, stream, [](const float* in, uint16_t* out, bool) {
        vst1_u16(out, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(in))));
    });
}

void fence() {}

// The byte vectors of vector_e4m3.inl.
struct B {
    static constexpr int64_t kBytes = 16;
    using U8 = uint8x16_t;
    using U16 = uint16x8_t;
    using F = float32x4_t;

    static U8 load(const uint8_t* p) { return vld1q_u8(p); }
    static U8 load_nibbles(const uint8_t* p) {
        const uint8x8_t bytes = vld1_u8(p), even = vand_u8(bytes, vdup_n_u8(0xF)), odd = vshr_n_u8(bytes, 4);
        return vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd));
    }
    static U8 table(const uint8_t* p) { return vld1q_u8(p); }
    static U8 lookup(U8 table, U8 index) { return vqtbl1q_u8(table, index); }
    static U8 set1(uint8_t x) { return vdupq_n_u8(x); }
    static U8 and_(U8 a, U8 b) { return vandq_u8(a, b); }
    static U8 or_(U8 a, U8 b) { return vorrq_u8(a, b); }
    static U8 min(U8 a, U8 b) { return vminq_u8(a, b); }
    static U8 eq(U8 a, U8 b) { return vceqq_u8(a, b); }
    static bool any(U8 x) { return vmaxvq_u8(x) != 0; }

    static void split(const uint16_t* x, uint16_t y, uint8_t* low, uint8_t* high) {
        const uint8x16_t first = vreinterpretq_u8_u16(vld1q_u16(x));
        const uint8x16_t second = vreinterpretq_u8_u16(vsubq_u16(vld1q_u16(x + 8), vdupq_n_u16(y)));
        vst1q_u8(low, vuzp1q_u8(first, second));
        vst1q_u8(high, vuzp2q_u8(first, second));
    }

    static U16 zip_low(U8 low, U8 high) { return vreinterpretq_u16_u8(vzip1q_u8(low, high)); }
    static U16 zip_high(U8 low, U8 high) { return vreinterpretq_u16_u8(vzip2q_u8(low, high)); }
    static U16 set1_16(uint16_t x) { return vdupq_n_u16(x); }
    static U16 and_16(U16 a, U16 b) { return vandq_u16(a, b); }
    static U16 add_16(U16 a, U16 b) { return vaddq_u16(a, b); }
    static U16 shift_right_4(U16 x) { return vreinterpretq_u16_s16(vshrq_n_s16(vreinterpretq_s16_u16(x), 4)); }
    static U16 select_16(U16 mask, U16 set, U16 clear) { return vbslq_u16(mask, set, clear); }

    static F first_floats(U16 x) { return vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(x), 16)); }
    static F second_floats(U16 x) { return vreinterpretq_f32_u32(vshll_high_n_u16(x, 16)); }
    static F set1_float(float x) { return vdupq_n_f32(x); }
    static F load_floats(const float* p) { return vld1q_f32(p); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }

    static void put(uint16_t* p, U16 x, bool) { vst1q_u16(p, x); }
    static uint16x4_t rounded(F x) {
        const uint32x4_t bits = vreinterpretq_u32_f32(x), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        return vmovn_u32(vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd), 16));
    }
    static U16 round(F a, F b) { return vcombine_u16(rounded(a), rounded(b)); }
    static void put_halves(uint16_t* p, F x, bool) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
    static void put(float* p, F x, bool) { vst1q_f32(p, x); }
};

#include "kernels/vector_e4m3.inl"
#include "kernels/vector_nibbles.inl"

}  // namespace

#include "kernels/vector_table.inl"

const KernelSet kNeonKernels = QDEQ_KERNEL_SET("neon");

}  // namespace qdeq

#endif
