// The definition of correct: kernels.h's formulas, one element at a time, in plain C++.
#include <cmath>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/scalar_bytes.h"
#include "kernels/scalar_codes.h"
#include "kernels/scalar_math.h"

namespace qdeq {
namespace {

template <typename T, Formula kFormula, bool kPerElement>
void dequantize_rows_scalar(const RowBlock& b) {
    using Scale = typename FormulaTypes<kFormula>::Scale;
    using Zero = typename FormulaTypes<kFormula>::Zero;
    const auto* scale = static_cast<const Scale*>(b.scale);
    const auto* zero_point = static_cast<const Zero*>(b.zero_point);
    for (int64_t r = 0; r < b.num_rows; ++r) {
        const T* src = static_cast<const T*>(b.src) + r * b.src_row_stride;
        float* dst = b.dst + r * b.dst_row_stride;
        for (int64_t i = 0; i < b.row_len; ++i) {
            const int64_t c = kPerElement ? i : r * b.channel_step;
            dst[i] = dequantize_one<kFormula>(src[i], scale[c], zero_point[c]);
        }
    }
}

void to_bfloat16(const float* src, uint16_t* dst, int64_t count, bool) {
    for (int64_t i = 0; i < count; ++i) dst[i] = bfloat16_bits(src[i]);
}

void to_float16(const float* src, uint16_t* dst, int64_t count, bool) {
    for (int64_t i = 0; i < count; ++i) dst[i] = float16_bits(src[i]);
}

void copy(const float* src, float* dst, int64_t count, bool) { std::memcpy(dst, src, count * sizeof(float)); }

void fence() {}

}  // namespace

#define QDEQ_PER_ROW(T)                                                                        \
    {dequantize_rows_scalar<T, kSubFloat, false>, dequantize_rows_scalar<T, kSubInt32, false>, \
     dequantize_rows_scalar<T, kDouble, false>}
#define QDEQ_PER_ELEMENT(T) \
    {dequantize_rows_scalar<T, kSubFloat, true>, nullptr, dequantize_rows_scalar<T, kDouble, true>}

const KernelSet kScalarKernels = {
    "scalar",
    {QDEQ_PER_ROW(int8_t), QDEQ_PER_ROW(uint8_t), QDEQ_PER_ROW(int32_t)},
    {QDEQ_PER_ELEMENT(int8_t), QDEQ_PER_ELEMENT(uint8_t), QDEQ_PER_ELEMENT(int32_t)},
    unpack_4bit,
    unpack_2bit,
    to_bfloat16,
    to_float16,
    transpose_bytes,
    transpose_words,
    {dequantize_codes<kFloat32>, dequantize_codes<kBFloat16>, dequantize_codes<kFloat16>},
    {dequantize_codes<kFloat32>, dequantize_codes<kBFloat16>, dequantize_codes<kFloat16>},
    {dequantize_codes<kFloat32>, dequantize_codes<kBFloat16>, dequantize_codes<kFloat16>},
    copy,
    fence,
};

bool is_e4m3(const float* values) {
    for (int code = 0; code < 256; ++code) {
        const int exponent = (code >> 3) & 0xF, mantissa = code & 7;
        if ((code & 0x7F) == 0x7F) {
            if (!std::isnan(values[code])) return false;
            continue;
        }
        const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                         : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
        if (float_bits(values[code]) != float_bits(code < 128 ? size : -size)) return false;
    }
    return true;
}

}  // namespace qdeq
