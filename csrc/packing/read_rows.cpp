#include "packing/read_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace qdeq::packing {
namespace {

constexpr int64_t kTileBytes = 128 << 10;  // stays in a second-level cache
constexpr int64_t kBlockedRows = 8;        // KernelSet::transpose_words takes rows by eights
constexpr int64_t kTileRows = 16;          // a quad of 16 rows fills a cache line
constexpr int64_t kDepthwiseRows = 32;

// ---- Blocked ----------------------------------------------------------------------------------------------------

void read_blocked_by_element(const Blocked& m, const Tile& tile, int8_t* rows, int64_t row_bytes) {
    for (int64_t r = 0; r < tile.rows; ++r) {
        for (int64_t c = 0; c < tile.cols; ++c) {
            rows[r * row_bytes + c] = m.data[m.offset(tile.group, tile.row + r, tile.col + c)];
        }
    }
}

// Needs block_rows % 8 == 0, so that eight rows from a multiple of eight lie in one block (rows past the matrix are
// read from the block's unused end, and never looked at). Walks through a block once, in the order of its memory, while
// the next columns' block comes from memory.
void read_blocked_by_quads(const Blocked& m, const Tile& tile, const KernelSet& kernels, int8_t* rows,
                           int64_t row_bytes) {
    const int64_t tall = (tile.rows + kBlockedRows - 1) / kBlockedRows * kBlockedRows;
    for (int64_t done = 0; done < tile.cols; done += m.block_cols) {
        const int64_t quads = (std::min(m.block_cols, tile.cols - done) + 3) / 4;
        const auto* block = reinterpret_cast<const uint8_t*>(m.data + m.offset(tile.group, tile.row, tile.col + done));
        kernels.transpose_words(block, m.block_rows * 4, reinterpret_cast<uint8_t*>(rows + done), row_bytes, tall,
                                quads, block + m.row_blocks() * m.block_rows * m.block_cols);
    }
}

void read(const Blocked& m, const Tile& tile, const KernelSet& kernels, int8_t* rows, int64_t row_bytes) {
    if (m.block_rows % kBlockedRows == 0) {
        read_blocked_by_quads(m, tile, kernels, rows, row_bytes);
    } else {
        read_blocked_by_element(m, tile, rows, row_bytes);
    }
}

// ---- Depthwise, Groupwise, Direct: runs of a few bytes, so a walk by the formula with its inner part hoisted --------

// Four taps of a row lie together. The last copy of a row may hold padding; the next row then overwrites it.
template <int64_t kQuads, int64_t kPairs>  // -1: as the layout says
void read_depthwise(const Depthwise& m, const Tile& tile, int8_t* rows, int64_t row_bytes) {
    const int64_t left_over = m.taps % 4;
    const bool pairs = kPairs >= 0 ? kPairs != 0 : left_over == 1 || left_over == 2;
    const int64_t quads = kQuads >= 0 ? kQuads : m.taps / 4 + (left_over == 3);
    for (int64_t r = 0; r < tile.rows; ++r) {
        const int64_t in_half = r % 16, half = r % kDepthwiseRows / 16 * 16;
        const int8_t* block = m.data + (tile.row + r) / kDepthwiseRows * m.padded_taps() * Depthwise::kRegister + half;
        const int8_t* from = block + in_half / 4 * Depthwise::kRegister + in_half % 4 * 4;
        int8_t* row = rows + r * row_bytes;
        for (int64_t q = 0; q < quads; ++q) std::memcpy(row + 4 * q, from + q * 4 * Depthwise::kRegister, 4);
        if (pairs)
            std::memcpy(row + 4 * quads, block + (4 * quads + in_half / 8) * Depthwise::kRegister + in_half % 8 * 2, 2);
    }
}

void read(const Depthwise& m, const Tile& tile, const KernelSet&, int8_t* rows, int64_t row_bytes) {
    if (m.taps == 9) return read_depthwise<2, 1>(m, tile, rows, row_bytes);  // 3 x 3
    read_depthwise<-1, -1>(m, tile, rows, row_bytes);
}

template <int64_t kChannels>
void read_groupwise(const Groupwise& m, const Tile& tile, int8_t* rows, int64_t row_bytes) {
    const int64_t channels = kChannels != 0 ? kChannels : m.channels;
    const int64_t tap_bytes = m.offset(0, 0, 1, 0);
    const int64_t packed_row_bytes = m.together * m.padded_channels();
    const int8_t* first = m.data + m.offset(tile.group, tile.row, 0, 0);
    for (int64_t r = 0; r < tile.rows; ++r) {
        for (int64_t tap = 0; tap < m.taps; ++tap) {
            std::memcpy(rows + r * row_bytes + tap * channels, first + r * packed_row_bytes + tap * tap_bytes,
                        static_cast<size_t>(channels));
        }
    }
}

void read(const Groupwise& m, const Tile& tile, const KernelSet&, int8_t* rows, int64_t row_bytes) {
    switch (m.channels) {
        case 4:
            return read_groupwise<4>(m, tile, rows, row_bytes);
        case 8:
            return read_groupwise<8>(m, tile, rows, row_bytes);
        case 16:
            return read_groupwise<16>(m, tile, rows, row_bytes);
        default:
            return read_groupwise<0>(m, tile, rows, row_bytes);
    }
}

void read(const Direct& m, const Tile& tile, const KernelSet&, int8_t* rows, int64_t row_bytes) {
    for (int64_t r = 0; r < tile.rows; ++r) {
        for (int64_t tap = 0; tap < m.taps; ++tap) {
            for (int64_t c = 0; c < m.channels; c += 4) {
                std::memcpy(rows + r * row_bytes + tap * m.channels + c, m.data + m.offset(tile.row + r, tap, c), 4);
            }
        }
    }
}

// A tile is as wide as the cache allows: then its rows are written as long runs, and it is those that count. It is a
// cache line's rows tall, which a block's height is a multiple of on the machines known.
Tiling tiling(const Blocked& m, bool whole_rows) {
    const int64_t tall = m.block_rows % kTileRows == 0 ? kTileRows : kBlockedRows;
    const int64_t all_rows = (m.rows_per_group + tall - 1) / tall * tall;
    const int64_t band = m.block_rows % kBlockedRows == 0 ? std::min(m.block_rows, all_rows) : kBlockedRows;
    const int64_t cols = std::max<int64_t>(kTileBytes / tall / m.block_cols, 1) * m.block_cols;
    return {m.groups, m.rows_per_group, m.cols, tall, whole_rows ? m.cols : std::min(m.cols, cols), band, false};
}

Tiling tiling(const Depthwise& m, bool) {
    const int64_t tall = std::max<int64_t>(kTileBytes / 16 / m.taps / kDepthwiseRows, 1) * kDepthwiseRows;
    return {1, m.rows, m.taps, tall, m.taps, tall, true};
}

Tiling tiling(const Groupwise& m, bool) {
    return {m.groups, m.rows_per_group, m.cols(), m.rows_per_group, m.cols(), m.rows_per_group, true};
}

Tiling tiling(const Direct& m, bool) { return {1, m.rows, m.cols(), 8, m.cols(), 8, true}; }

}  // namespace

Tiling tiling_of(const Matrix& matrix, bool whole_rows) {
    return std::visit([&](const auto& m) { return tiling(m, whole_rows); }, matrix);
}

Tile tile_at(const Tiling& t, int64_t index) {
    const int64_t in_band = index % t.tiles_per_band();
    const int64_t col_tile = index / t.tiles_per_band() % t.col_tiles();
    const int64_t band = index / t.tiles_per_band() / t.col_tiles();
    Tile tile;
    tile.group = band / t.bands();
    tile.row = band % t.bands() * t.rows_per_band + in_band * t.rows_per_tile;
    tile.rows = std::clamp<int64_t>(t.rows_per_group - tile.row, 0, t.rows_per_tile);
    tile.col = col_tile * t.cols_per_tile;
    tile.cols = std::min(t.cols_per_tile, t.cols - tile.col);
    return tile;
}

void read_tile(const Matrix& matrix, const Tile& tile, const KernelSet& kernels, int8_t* rows, int64_t row_bytes) {
    std::visit([&](const auto& m) { read(m, tile, kernels, rows, row_bytes); }, matrix);
}

}  // namespace qdeq::packing
