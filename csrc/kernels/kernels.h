// The kernels' contract: quantized integers in, float32 out, raw pointers only.
//
// Formulas (all float32 unless said otherwise; round to nearest even; no fused multiply-add anywhere):
//
//   kSubFloat   y = (float(q) - z) * s
//               per channel, float qparams
//
//   kSubInt32   y = float(int32(q) - int32(z)) * s
//               per tensor; the subtraction wraps
//
//   kDouble     y = float(double(float(q) - z) * sd)
//               per channel, when some scale is not a float32
//
//   codes       y = (value[code] - z) * s
//               codes of 1 to 8 bits with a table of values, a scale and a zero point for each block of columns
//
// For an 8-bit q and z in its range, float(q) - float(z) is the exact integer q - z: there kSubFloat and kSubInt32 give
// the same bits. When double(float(sd)) == sd the product of kDouble is exact in double and rounds once: kSubFloat
// gives the same bits.
//
// Every kernel set gives the bits of scalar.cpp, reads and writes nothing outside the ranges named here, and needs no
// alignment beyond that of the element type.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qdeq {

enum IntType { kInt8 = 0, kUInt8 = 1, kInt32 = 2 };
enum Formula { kSubFloat = 0, kSubInt32 = 1, kDouble = 2 };
enum OutType { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// num_rows rows of row_len integers, each row contiguous, to num_rows contiguous rows of floats.
// Per row parameters: row r uses scale[r * channel_step], zero_point[r * channel_step].
// Per element parameters: element i of every row uses scale[i], zero_point[i] (channel_step is not read).
struct RowBlock {
    const void* src;         // int8_t, uint8_t or int32_t
    float* dst;              // does not overlap src
    int64_t num_rows;        // >= 0
    int64_t row_len;         // >= 0, in elements
    int64_t src_row_stride;  // in elements
    int64_t dst_row_stride;  // in elements
    int64_t channel_step;    // 0 or 1
    const void* scale;       // float; double for kDouble
    const void* zero_point;  // float; int32_t for kSubInt32
    bool stream;             // write past the caches (non-temporal stores); the caller issues the fence
};

using RowsFn = void (*)(const RowBlock&);

// num_rows rows of row_len codes to rows of results, each row contiguous. Code i of a row is in bits i * bits to
// (i + 1) * bits - 1 of its bytes, low bits first. Columns 0 .. block_len - 1 of every row use scale[0] and zero[0],
// the next block_len use scale[1] and zero[1], and so on; the last block may be cut. Any scale is legal but NaN and
// infinity. Results of 16 bits are the float32 product rounded to nearest even; NaN is 0x7FC00000, 0x7FC0, 0x7E00.
struct CodePanel {
    const uint8_t* src;
    void* dst;  // does not overlap src
    int64_t num_rows;
    int64_t row_len;
    int64_t src_row_stride;  // in bytes; at least what row_len codes take, and no more is read
    int64_t dst_row_stride;  // in elements
    int64_t block_len;       // > 0
    const float* scale;
    const float* zero;  // null: zeros
    int bits;
    const float* values;  // of all 2^bits codes; a NaN is 0x7FC00000
    bool stream;
};

using PanelFn = void (*)(const CodePanel&);

struct KernelSet {
    const char* name;
    RowsFn per_row[3][3];      // [IntType][Formula]
    RowsFn per_element[3][3];  // [IntType][Formula]; kSubInt32 is per tensor only: null

    // num_values values of 4 (2) bits, low bits first, to one byte each. src starts at a byte boundary.
    void (*unpack_4bit)(const uint8_t* src, uint8_t* dst, int64_t num_values);
    void (*unpack_2bit)(const uint8_t* src, uint8_t* dst, int64_t num_values);

    // float32 to 16 bits, rounded to nearest even; overflow gives infinity, NaN stays NaN.
    void (*to_bfloat16)(const float* src, uint16_t* dst, int64_t count, bool stream);
    void (*to_float16)(const float* src, uint16_t* dst, int64_t count, bool stream);

    // dst[r * dst_stride + c] = src[c * src_stride + r], bytes.
    void (*transpose_bytes)(const uint8_t* src, int64_t src_stride, uint8_t* dst, int64_t dst_stride, int64_t num_rows,
                            int64_t num_cols);

    // The same for words of 4 bytes: word c of row r, at dst[r * dst_stride + 4 * c], is the one at
    // src[c * src_stride + 4 * r]. num_rows is a multiple of 8. `next` is read after this, in the same order: it may be
    // prefetched, so it need not be readable.
    void (*transpose_words)(const uint8_t* src, int64_t src_stride, uint8_t* dst, int64_t dst_stride, int64_t num_rows,
                            int64_t num_cols, const uint8_t* next);

    // Codes to OutType.
    PanelFn any_codes[3];
    PanelFn e4m3_codes[3];    // 8 bits, is_e4m3(values), zeros
    PanelFn nibble_codes[3];  // 4 bits, block_len even or not below row_len

    void (*copy)(const float* src, float* dst, int64_t count, bool stream);

    // Makes streamed stores visible before what follows.
    void (*fence)();
};

extern const KernelSet kScalarKernels;
#if defined(__x86_64__)
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
#elif defined(__aarch64__)
extern const KernelSet kNeonKernels;
#endif

// scalar.cpp. Whether a table of 256 values is that of float8 e4m3fn: 1 sign bit, 4 exponent bits of bias 7 and 3
// mantissa bits, no infinities, 0x7F and 0xFF NaN.
bool is_e4m3(const float* values);

// dispatch.cpp: the only file that asks which CPU this is.
int num_kernel_sets();                         // those that run on this machine, fastest first; at least one
const KernelSet& kernel_set(int index);        // 0 <= index < num_kernel_sets()
const KernelSet& current_kernels();            // the forced one, else the first
bool force_kernels(const char* name_or_null);  // null: automatic again. False: no such set here

}  // namespace qdeq
