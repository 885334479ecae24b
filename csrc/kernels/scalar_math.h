// One element of each formula: what scalar.cpp is made of and what vector kernels use for heads and tails.
//
// Everything sits in an unnamed namespace on purpose: each kernel file compiles its own copy under its own
// instruction set, and the linker must not merge them.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

namespace qdeq {
namespace {

template <Formula kFormula>
struct FormulaTypes {
    using Scale = float;
    using Zero = float;
};
template <>
struct FormulaTypes<kSubInt32> {
    using Scale = float;
    using Zero = int32_t;
};
template <>
struct FormulaTypes<kDouble> {
    using Scale = double;
    using Zero = float;
};

template <Formula kFormula, typename T>
inline float dequantize_one(T q, typename FormulaTypes<kFormula>::Scale scale,
                            typename FormulaTypes<kFormula>::Zero zero_point) {
    if constexpr (kFormula == kSubFloat) {
        return (static_cast<float>(q) - zero_point) * scale;
    } else if constexpr (kFormula == kSubInt32) {
        const uint32_t wrapped = static_cast<uint32_t>(static_cast<int32_t>(q)) - static_cast<uint32_t>(zero_point);
        return static_cast<float>(static_cast<int32_t>(wrapped)) * scale;
    } else {
        return static_cast<float>(static_cast<double>(static_cast<float>(q) - zero_point) * scale);
    }
}

inline uint32_t float_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

inline uint16_t bfloat16_bits(float x) {
    const uint32_t bits = float_bits(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0;  // NaN: rounding could turn it into infinity
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE binary16: 1 sign bit, 5 exponent bits (bias 15), 10 mantissa bits.
inline uint16_t float16_bits(float x) {
    const uint32_t bits = float_bits(x);
    const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);   // NaN
    if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7C00u);  // >= 2^16: infinity
    if (magnitude >= 0x38800000u) {                                              // >= 2^-14: normal
        const uint32_t rebased = magnitude - ((127u - 15u) << 23);  // may round up into infinity, as it must
        return static_cast<uint16_t>(sign | ((rebased + 0xFFFu + ((rebased >> 13) & 1u)) >> 13));
    }
    if (magnitude < 0x33000000u) return sign;  // < 2^-25: zero
    const uint32_t exponent = magnitude >> 23;
    const uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
    const uint32_t shift = 126u - exponent;  // 14 .. 24: the result counts units of 2^-24
    const uint32_t half = (1u << (shift - 1)) - 1u;
    return static_cast<uint16_t>(sign | ((mantissa + half + ((mantissa >> shift) & 1u)) >> shift));
}

// Floats to write one by one before p is aligned to kBytes; all of them where p can never be.
template <int64_t kBytes>
inline int64_t floats_until_aligned(const float* p, int64_t count) {
    const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % kBytes);
    if (misaligned == 0) return 0;
    if (misaligned % 4 != 0) return count;
    const int64_t head = (kBytes - misaligned) / 4;
    return head < count ? head : count;
}

}  // namespace
}  // namespace qdeq
