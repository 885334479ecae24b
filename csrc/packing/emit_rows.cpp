#include "packing/emit_rows.h"

#include <algorithm>
#include <cstring>

namespace qdeq::packing {
namespace {

constexpr int64_t kElementsPerThread = 32768;  // below this a second thread costs more than it brings

// Calls emit(tile, rows, row_bytes) for every tile of the matrix, with the tile's values as rows of int8, their columns
// in the target's order unless that is kScattered. Each thread gets its own copy of emit.
template <typename Emit>
void for_each_tile(const Matrix& matrix, const Target& target, const KernelSet& kernels, ParallelFor parallel_for,
                   const Emit& emit_of_all) {
    const bool transposes = target.columns == Target::kTransposed;
    const Tiling tiling = tiling_of(matrix, transposes);
    const int64_t row_bytes =
        tiling.end_to_end ? tiling.cols_per_tile : (tiling.cols_per_tile + kRowSlack + 63) / 64 * 64;
    const auto tile_bytes = static_cast<size_t>(tiling.rows_per_tile * row_bytes + kRowSlack);
    const int64_t grain = kElementsPerThread / std::max<int64_t>(tiling.rows_per_tile * tiling.cols_per_tile, 1) + 1;
    parallel_for(tiling.tiles(), grain, [&](int64_t begin, int64_t end) {
        Emit emit = emit_of_all;
        std::vector<int8_t> rows(tile_bytes);
        std::vector<int8_t> transposed(transposes ? tile_bytes : 0);
        for (int64_t index = begin; index < end; ++index) {
            const Tile tile = tile_at(tiling, index);
            if (tile.rows == 0) continue;
            read_tile(matrix, tile, kernels, rows.data(), row_bytes);
            for (int64_t r = 0; transposes && r < tile.rows; ++r) {
                kernels.transpose_bytes(reinterpret_cast<const uint8_t*>(rows.data() + r * row_bytes), target.channels,
                                        reinterpret_cast<uint8_t*>(transposed.data() + r * row_bytes), target.taps,
                                        target.channels, target.taps);
            }
            emit(tile, transposes ? transposed.data() : rows.data(), row_bytes);
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
    for (int64_t c = 0; c < tile.cols; ++c) row[target.places[static_cast<size_t>(tile.col + c)]] = values[c];
}

// Dequantizes tiles; one per thread, for the buffers.
struct FloatTiles {
    const Qparams& qparams;
    const Target& target;
    const KernelSet& kernels;
    int64_t rows_per_group;
    bool stream;
    void* out;
    OutType type;
    std::vector<float> values = {};
    std::vector<uint16_t> halves = {};

    void operator()(const Tile& tile, const int8_t* rows, int64_t row_bytes) {
        const int64_t channel = qparams.per_row ? tile.group * rows_per_group + tile.row : 0;
        RowBlock block{};
        block.src = rows;
        block.num_rows = tile.rows;
        block.row_len = tile.cols;
        block.src_row_stride = row_bytes;
        block.dst_row_stride = target.row_stride;
        block.channel_step = qparams.per_row ? 1 : 0;
        block.scale = qparams.scale + channel;
        block.zero_point = qparams.zero_point + channel;
        block.stream = stream;
        if (type != kFloat32 || target.columns == Target::kScattered) {
            buffered(tile, block);
            return;
        }
        block.dst = static_cast<float*>(out) + row_start(target, tile, 0) + tile.col;
        kernels.per_row[kInt8][kSubFloat](block);
    }

    // 16-bit results, and results whose rows are not dense: through a row of float32.
    void buffered(const Tile& tile, const RowBlock& block) {
        values.resize(static_cast<size_t>(block.row_len));
        halves.resize(static_cast<size_t>(block.row_len));
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
            if (type == kFloat32) {
                scatter(target, tile, values.data(), static_cast<float*>(out) + start);
                continue;
            }
            auto* to = static_cast<uint16_t*>(out) + start;
            auto* convert = type == kBFloat16 ? kernels.to_bfloat16 : kernels.to_float16;
            if (target.columns == Target::kScattered) {
                convert(values.data(), halves.data(), tile.cols, false);
                scatter(target, tile, halves.data(), to);
            } else {
                convert(values.data(), to + tile.col, tile.cols, block.stream);
            }
        }
    }
};

}  // namespace

void to_float(const Matrix& matrix, const Qparams& qparams, const Target& target, const KernelSet& kernels, bool stream,
              ParallelFor parallel_for, void* out, OutType type) {
    const int64_t rows_per_group = tiling_of(matrix, false).rows_per_group;
    for_each_tile(matrix, target, kernels, parallel_for,
                  FloatTiles{qparams, target, kernels, rows_per_group, stream, out, type});
}

void to_int8(const Matrix& matrix, const Target& target, const KernelSet& kernels, ParallelFor parallel_for,
             int8_t* out) {
    for_each_tile(matrix, target, kernels, parallel_for, [&](const Tile& tile, const int8_t* rows, int64_t row_bytes) {
        for (int64_t r = 0; r < tile.rows; ++r) {
            const int8_t* values = rows + r * row_bytes;
            int8_t* row = out + row_start(target, tile, r);
            if (target.columns == Target::kScattered) {
                scatter(target, tile, values, row);
            } else {
                std::memcpy(row + tile.col, values, static_cast<size_t>(tile.cols));
            }
        }
    });
}

}  // namespace qdeq::packing
