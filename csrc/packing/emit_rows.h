// Reads a packed weight tile by tile and writes it, dequantized or as it is, where a strided result wants it.
#pragma once

#include <cstdint>
#include <vector>

#include "common/threads.h"
#include "kernels/kernels.h"
#include "packing/read_rows.h"

namespace qdeq::packing {

// Where element (group, row, column) of the matrix goes: group * group_stride + row * row_stride + the column's place,
// all counted in elements.
struct Target {
    enum Columns {
        kDense,       // the column itself
        kTransposed,  // column tap * channels + channel goes to channel * taps + tap: a contiguous convolution weight
        kScattered,   // places[column]
    };
    int64_t group_stride;
    int64_t row_stride;
    Columns columns;
    int64_t taps;
    int64_t channels;
    std::vector<int64_t> places;  // for kScattered
};

// y = (float(q) - zero_point) * scale in float32 (kernels.h, kSubFloat); one pair for all rows or one per row.
struct Qparams {
    const float* scale;
    const float* zero_point;
    bool per_row;
};

// stream: write past the caches (for results that do not fit in them).
void to_float(const Matrix& matrix, const Qparams& qparams, const Target& target, const KernelSet& kernels, bool stream,
              ParallelFor parallel_for, void* out, OutType type);
void to_int8(const Matrix& matrix, const Target& target, const KernelSet& kernels, ParallelFor parallel_for,
             int8_t* out);

}  // namespace qdeq::packing
