#include "kernels/grid.h"

#include <algorithm>

namespace qdeq {

GridDequantizer::GridDequantizer(const GridRequest& request)
    : r_(request),
      grid_rows_((request.num_rows + request.block_rows - 1) / request.block_rows),
      grid_cols_((request.num_cols + request.block_cols - 1) / request.block_cols),
      is_e4m3_(is_e4m3(request.values)) {}

void GridDequantizer::run(int64_t begin, int64_t end, const KernelSet& kernels, bool stream) const {
    if (r_.num_cols == 0) return;
    const PanelFn dequantize = (is_e4m3_ ? kernels.e4m3_codes : kernels.any_codes)[r_.out_type];
    for (int64_t row = begin; row < end;) {
        const int64_t matrix = row / r_.num_rows, within = row % r_.num_rows;
        const int64_t grid_row = within / r_.block_rows;
        const int64_t left_in_block = std::min(r_.block_rows - within % r_.block_rows, r_.num_rows - within);
        const int64_t count = std::min(left_in_block, end - row);
        dequantize({r_.src + row * r_.num_cols, static_cast<char*>(r_.dst) + row * row_bytes(), count, r_.num_cols,
                    r_.num_cols, r_.num_cols, r_.block_cols, r_.scale + (matrix * grid_rows_ + grid_row) * grid_cols_,
                    r_.values, stream});
        row += count;
    }
    if (stream) kernels.fence();
}

}  // namespace qdeq
