// Reads fbgemm's packed embedding tables: rows of 8, 4 or 2 bit values with their parameters behind them.
//
//   8 bit:  [cols bytes]         [float32 scale] [float32 zero point term]     row_bytes = cols + 8
//   4 bit:  [cols / 2 bytes]     [float16 scale] [float16 zero point term]     row_bytes = cols / 2 + 4
//   2 bit:  [cols / 4 bytes]     the same                                      row_bytes = cols / 4 + 4
//
// Low bits come first. The packed object also keeps every row's scale and zero point as float32; unpack() uses those,
// and so does this file: y = (float(q) - zero_point) * scale.
//
// Worked index, 4 bit, cols = 16 (row_bytes = 12): row 3, column 5 is the high half of byte 3 * 12 + 5 / 2 = 38.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "packing/emit_rows.h"

namespace qdeq::packing {

struct EmbeddingTable {
    const uint8_t* data;
    int64_t rows;
    int64_t cols;
    int64_t bits;  // 8, 4 or 2
    int64_t row_bytes;
    const float* scale;       // rows of them
    const float* zero_point;  // likewise
};

// Element (r, c) goes to r * row_stride + c * col_stride, counted in elements.
void embedding_to_float(const EmbeddingTable& table, const KernelSet& kernels, bool stream, ParallelFor parallel_for,
                        void* out, OutType type, int64_t row_stride, int64_t col_stride);

}  // namespace qdeq::packing
