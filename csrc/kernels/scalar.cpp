// The definition of correct: kernels.h's formulas, one element at a time, in plain C++.
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/scalar_bytes.h"
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
    copy,
    fence,
};

}  // namespace qdeq
