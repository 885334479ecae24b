#include "kernels/grid.h"

#include <algorithm>

namespace qdeq {
namespace {

const PanelFn (KernelSet::* kernel_for(const GridRequest& r))[3] {
    if (r.bits == 8 && r.zero == nullptr && is_e4m3(r.values)) return &KernelSet::e4m3_codes;
    if (r.bits == 4 && (r.block_cols % 2 == 0 || r.block_cols >= r.num_cols)) return &KernelSet::nibble_codes;
    return &KernelSet::any_codes;
}

}  // namespace

GridDequantizer::GridDequantizer(const GridRequest& request)
    : r_(request),
      grid_rows_((request.num_rows + request.block_rows - 1) / request.block_rows),
      grid_cols_((request.num_cols + request.block_cols - 1) / request.block_cols),
      kernel_(kernel_for(request)) {}

void GridDequantizer::run(int64_t begin, int64_t end, const KernelSet& kernels, bool stream) const {
    if (r_.num_cols == 0) return;
    const PanelFn dequantize = (kernels.*kernel_)[r_.out_type];
    for (int64_t row = begin; row < end;) {
        const int64_t matrix = row / r_.num_rows, within = row % r_.num_rows;
        const int64_t left_in_block = std::min(r_.block_rows - within % r_.block_rows, r_.num_rows - within);
        const int64_t count = std::min(left_in_block, end - row);
        const int64_t first_block = (matrix * grid_rows_ + within / r_.block_rows) * grid_cols_;
        dequantize({r_.src + row * r_.row_bytes, static_cast<char*>(r_.dst) + row * out_row_bytes(), count, r_.num_cols,
                    r_.row_bytes, r_.num_cols, r_.block_cols, r_.scale + first_block,
                    r_.zero == nullptr ? nullptr : r_.zero + first_block, r_.bits, r_.values, stream});
        row += count;
    }
    if (stream) kernels.fence();
}

}  // namespace qdeq
