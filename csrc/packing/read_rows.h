// Reads a rectangle of a packed weight into plain rows of int8, whatever its layout.
#pragma once

#include <cstdint>
#include <variant>

#include "kernels/kernels.h"
#include "packing/layouts.h"

namespace qdeq::packing {

using Matrix = std::variant<Blocked, Depthwise, Groupwise, Direct>;

// How a matrix is cut into tiles. A tile never crosses a group; its columns are all of them unless cols_per_tile is
// smaller, which only Blocked allows. Tiles of one band of rows follow each other before the next columns: they share
// the blocks that hold them, and the cache lines of those.
struct Tiling {
    int64_t groups;
    int64_t rows_per_group;
    int64_t cols;
    int64_t rows_per_tile;
    int64_t cols_per_tile;
    int64_t rows_per_band;  // a multiple of rows_per_tile
    bool end_to_end;        // rows lie end to end: what is written past one is overwritten by the next

    int64_t bands() const { return (rows_per_group + rows_per_band - 1) / rows_per_band; }
    int64_t col_tiles() const { return (cols + cols_per_tile - 1) / cols_per_tile; }
    int64_t tiles_per_band() const { return rows_per_band / rows_per_tile; }
    int64_t tiles() const { return groups * bands() * col_tiles() * tiles_per_band(); }
};

// One tile: rows row..row+rows-1 of a group, columns col..col+cols-1. The last band's last tiles may have no rows.
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

// Writes element (r, c) of the tile to rows[r * row_bytes + c]; row_bytes >= tile.cols + kRowSlack, or == tile.cols for
// end_to_end. The buffer holds tiling.rows_per_tile rows and kRowSlack bytes more, all of which may be written.
void read_tile(const Matrix& matrix, const Tile& tile, const KernelSet& kernels, int8_t* rows, int64_t row_bytes);

}  // namespace qdeq::packing
