// Codes with a grid of scales, one for each block of rows and columns: cut into panels for a kernel set.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace qdeq {

// Matrices one behind another, each with a grid of its own: block (i, j) of one is rows i * block_rows to
// (i + 1) * block_rows - 1, columns likewise; the last block in each direction may be cut. Everything is contiguous.
struct GridRequest {
    const uint8_t* src;
    void* dst;  // does not overlap src
    OutType out_type;
    int64_t num_matrices, num_rows, num_cols;
    int64_t row_bytes;               // of a row of codes
    int64_t block_rows, block_cols;  // > 0
    const float* scale;
    const float* zero;  // null: zeros
    int bits;
    const float* values;  // of the 2^bits codes
};

class GridDequantizer {
  public:
    explicit GridDequantizer(const GridRequest& request);

    int64_t num_rows() const { return r_.num_matrices * r_.num_rows; }
    int64_t out_row_bytes() const { return r_.num_cols * (r_.out_type == kFloat32 ? 4 : 2); }

    // Rows [begin, end), counted through all matrices. Ranges may run at the same time.
    void run(int64_t begin, int64_t end, const KernelSet& kernels, bool stream) const;

  private:
    GridRequest r_;
    int64_t grid_rows_, grid_cols_;
    const PanelFn (KernelSet::*kernel_)[3];
};

}  // namespace qdeq
