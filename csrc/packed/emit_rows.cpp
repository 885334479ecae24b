#include "packed/emit_rows.h"

#include <algorithm>
#include <cstring>

namespace qdeq::packed {
namespace {

constexpr int64_t kElementsPerThread = 65536;  // below this a second thread costs more than it brings

Isa isa_of(const KernelSet& kernels) {
    return std::strcmp(kernels.name, kScalarKernels.name) == 0 ? Isa::kScalar : Isa::kAvx2;
}

// Calls emit(tile, rows, row_bytes) for every tile of the matrix, with the tile's values as rows of int8, their columns
// already in the target's order where that is a permutation.
template <typename Emit>
void for_each_tile(const Matrix& matrix, const Target& target, const KernelSet& kernels,
                   const ParallelFor& parallel_for, const Emit& emit) {
    const Tiling tiling = tiling_of(matrix, target.permutes);
    const int64_t row_bytes = (tiling.cols_per_tile + kRowSlack + 63) / 64 * 64;
    const auto tile_bytes = static_cast<size_t>(tiling.rows_per_tile * row_bytes);
    const int64_t grain = kElementsPerThread / std::max<int64_t>(tiling.rows_per_tile * tiling.cols_per_tile, 1) + 1;
    parallel_for(tiling.tiles(), grain, [&](int64_t begin, int64_t end) {
        std::vector<int8_t> rows(tile_bytes);
        std::vector<int8_t> permuted(target.permutes ? tile_bytes : 0);
        for (int64_t index = begin; index < end; ++index) {
            const Tile tile = tile_at(tiling, index);
            read_tile(matrix, tile, isa_of(kernels), rows.data(), row_bytes);
            if (!target.permutes) {
                emit(tile, rows.data(), row_bytes);
                continue;
            }
            for (int64_t r = 0; r < tile.rows; ++r) {
                const int8_t* from = rows.data() + r * row_bytes;
                int8_t* to = permuted.data() + r * row_bytes;
                for (int64_t c = 0; c < tile.cols; ++c) to[target.columns[static_cast<size_t>(c)]] = from[c];
            }
            emit(tile, permuted.data(), row_bytes);
        }
        kernels.fence();
    });
}

// The first element of a tile's row in the result.
inline int64_t row_start(const Target& target, const Tile& tile, int64_t r) {
    return tile.group * target.group_stride + (tile.row + r) * target.row_stride;
}

template <typename T>
void scatter(const Target& target, const Tile& tile, const T* values, T* row) {
    for (int64_t c = 0; c < tile.cols; ++c) row[target.columns[static_cast<size_t>(tile.col + c)]] = values[c];
}

// Rows that go through a float32 buffer: 16-bit results, and results whose rows are not dense.
void emit_buffered(const Target& target, const Tile& tile, const RowBlock& block, const KernelSet& kernels,
                   OutType type, void* out) {
    std::vector<float> values(static_cast<size_t>(block.row_len));
    std::vector<uint16_t> halves(static_cast<size_t>(type == OutType::kFloat32 ? 0 : block.row_len));
    for (int64_t r = 0; r < tile.rows; ++r) {
        RowBlock row = block;
        row.src = static_cast<const int8_t*>(block.src) + r * block.src_row_stride;
        row.dst = values.data();
        row.num_rows = 1;
        row.scale = static_cast<const float*>(block.scale) + r * block.channel_step;
        row.zero_point = static_cast<const float*>(block.zero_point) + r * block.channel_step;
        row.stream = false;
        kernels.per_row[kInt8][kSubFloat](row);
        const int64_t start = row_start(target, tile, r);
        if (type == OutType::kFloat32) {
            scatter(target, tile, values.data(), static_cast<float*>(out) + start);
            continue;
        }
        auto* to = static_cast<uint16_t*>(out) + start;
        auto* convert = type == OutType::kBFloat16 ? kernels.to_bfloat16 : kernels.to_float16;
        if (target.dense_rows()) {
            convert(values.data(), to + tile.col, tile.cols, block.stream);
        } else {
            convert(values.data(), halves.data(), tile.cols, false);
            scatter(target, tile, halves.data(), to);
        }
    }
}

}  // namespace

void to_float(const Matrix& matrix, const Qparams& qparams, const Target& target, const KernelSet& kernels, bool stream,
              const ParallelFor& parallel_for, void* out, OutType type) {
    const int64_t rows_per_group = tiling_of(matrix, false).rows_per_group;
    for_each_tile(matrix, target, kernels, parallel_for, [&](const Tile& tile, const int8_t* rows, int64_t row_bytes) {
        const int64_t channel = qparams.per_row ? tile.group * rows_per_group + tile.row : 0;
        const bool direct = type == OutType::kFloat32 && target.dense_rows();
        const RowBlock block{rows,
                             direct ? static_cast<float*>(out) + row_start(target, tile, 0) + tile.col : nullptr,
                             tile.rows,
                             tile.cols,
                             row_bytes,
                             target.row_stride,
                             qparams.per_row ? 1 : 0,
                             qparams.scale + channel,
                             qparams.zero_point + channel,
                             stream};
        if (direct) {
            kernels.per_row[kInt8][kSubFloat](block);
        } else {
            emit_buffered(target, tile, block, kernels, type, out);
        }
    });
}

void to_int8(const Matrix& matrix, const Target& target, const KernelSet& kernels, const ParallelFor& parallel_for,
             int8_t* out) {
    for_each_tile(matrix, target, kernels, parallel_for, [&](const Tile& tile, const int8_t* rows, int64_t row_bytes) {
        for (int64_t r = 0; r < tile.rows; ++r) {
            const int8_t* values = rows + r * row_bytes;
            int8_t* row = out + row_start(target, tile, r);
            if (target.dense_rows()) {
                std::memcpy(row + tile.col, values, static_cast<size_t>(tile.cols));
            } else {
                scatter(target, tile, values, row);
            }
        }
    });
}

}  // namespace qdeq::packed
