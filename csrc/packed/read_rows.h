// Reads a rectangle of a packed weight into plain rows of int8, whatever its layout.
#pragma once

#include <cstdint>
#include <variant>

#include "packed/layouts.h"

namespace qdeq::packed {

enum class Isa { kScalar, kAvx2 };

using Matrix = std::variant<Blocked, Depthwise, Groupwise, Direct>;

// How a matrix is cut into tiles. A tile never crosses a group; its columns are all of them unless cols_per_tile is
// smaller, which only Blocked allows.
struct Tiling {
    int64_t groups;
    int64_t rows_per_group;
    int64_t cols;
    int64_t rows_per_tile;
    int64_t cols_per_tile;

    int64_t row_tiles() const { return (rows_per_group + rows_per_tile - 1) / rows_per_tile; }
    int64_t col_tiles() const { return (cols + cols_per_tile - 1) / cols_per_tile; }
    int64_t tiles() const { return groups * row_tiles() * col_tiles(); }
};

// One tile: rows row..row+rows-1 of a group, columns col..col+cols-1.
struct Tile {
    int64_t group;
    int64_t row;
    int64_t rows;
    int64_t col;
    int64_t cols;
};

// whole_rows: every tile must hold complete rows (the caller reorders columns).
Tiling tiling_of(const Matrix& matrix, bool whole_rows);
Tile tile_at(const Tiling& tiling, int64_t index);

// Bytes that read_tile may write past the last column of a row, so that it can store whole vectors.
constexpr int64_t kRowSlack = 16;

// Writes element (r, c) of the tile to rows[r * row_bytes + c]; row_bytes >= tile.cols + kRowSlack. The buffer holds
// tiling.rows_per_tile rows, all of which may be written.
void read_tile(const Matrix& matrix, const Tile& tile, Isa isa, int8_t* rows, int64_t row_bytes);

}  // namespace qdeq::packed
