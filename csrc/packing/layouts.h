// The layouts in which fbgemm keeps int8 weights, each with a drawing, its index formula and a worked index.
//
// Every layout holds the same thing: a matrix of `rows` x `cols` int8, one row per output channel. The columns of a
// linear weight are its input features. Those of a convolution run over the taps (depth, height, width), then over
// the input channels of one group: column = tap * channels_per_group + channel, which is channels_last memory.
// Groups follow one another: row = group * rows_per_group + row in group.
//
// Plain structs of pointers and sizes; sizes count elements (= bytes), offsets are 64-bit. Nothing here knows torch
// or fbgemm, and no formula reads outside the buffer that the struct describes.
#pragma once

#include <cstdint>

namespace qdeq::packing {

// fbgemm::PackBMatrix<int8_t>: linear, and convolution by im2col or 1x1 ("pointwise").
//
// fbgemm packs the transposed matrix, cols x rows_per_group, in blocks of block_cols x block_rows:
//
//   block 0: columns 0..block_cols-1 of rows 0..block_rows-1
//   block 1: the same columns of the next block_rows rows ... then the next block_cols columns
//
//   inside a block, four neighbouring columns (a "quad") of one row lie together; the quads of all rows of the
//   block follow, then the next four columns. With block_rows = 8, as byte offsets:
//
//                   row 0           row 1          ...   row 7
//     columns 0..3   0  1  2  3      4  5  6  7     ...  28 29 30 31
//     columns 4..7  32 33 34 35     36 37 38 39     ...  60 61 62 63
//
// The blocking depends on the CPU that packed (512 x 8 with AVX2, 512 x 48 with AVX-512 VNNI), so it is data here.
// The last block of a column or row is stored in full size; what lies past the matrix in it is never used.
//
// Worked index, block_cols = 512, block_rows = 8, a group of 20 rows (3 blocks of rows), row 9, column 518:
//   block = (518 / 512) * 3 + 9 / 8 = 4;  in the block: (6 / 4) * 8 * 4 + (9 % 8) * 4 + 6 % 4 = 38;
//   offset = 4 * 512 * 8 + 38 = 16422.
struct Blocked {
    const int8_t* data;
    int64_t groups;
    int64_t rows_per_group;
    int64_t cols;
    int64_t block_cols;  // a multiple of 4
    int64_t block_rows;

    int64_t row_blocks() const { return (rows_per_group + block_rows - 1) / block_rows; }
    int64_t col_blocks() const { return (cols + block_cols - 1) / block_cols; }
    int64_t group_size() const { return row_blocks() * block_rows * col_blocks() * block_cols; }
    // `row` counts within the group.
    int64_t offset(int64_t group, int64_t row, int64_t col) const {
        const int64_t block = (col / block_cols) * row_blocks() + row / block_rows;
        const int64_t quad = (col % block_cols) / 4;
        return group * group_size() + block * block_rows * block_cols + quad * block_rows * 4 + (row % block_rows) * 4 +
               col % 4;
    }
};

// fbgemm::PackedDepthWiseConvMatrix: one input channel per group, so cols = taps (9, 25, 27, ...).
//
// Blocks of 32 rows, `padded_taps` (taps rounded up to even) registers of 32 bytes each. Bytes 0..15 of a register
// belong to the first 16 rows of the block, bytes 16..31 to the second 16. Four taps at a time fill four registers,
// four rows to a half:
//
//   register   0: row 0 taps 0..3 | row 1 taps 0..3 | row 2 | row 3 || row 16 taps 0..3 | ... | row 19
//   register   1: rows 4..7, rows 20..23          registers 2, 3: rows 8..11, 12..15 and 24..27, 28..31
//   register 4..7: the same rows, taps 4..7
//
// One or two taps that are left over take two registers, two bytes per row (a missing second tap is zero); three
// take four registers as above (a missing fourth is zero; only the registers that exist are counted).
//
// Worked index, taps = 9 (padded 10), row 37, tap 8: block 1, left over one tap, row 5 of the block:
//   register = (5 % 16) / 8 + 8 / 4 * 4 = 8;  byte = 2 * (5 % 8) + 0 = 10;  offset = (1 * 10 + 8) * 32 + 10 = 586.
struct Depthwise {
    const int8_t* data;
    int64_t rows;
    int64_t taps;

    static constexpr int64_t kRegister = 32;  // bytes

    int64_t padded_taps() const { return (taps + 1) / 2 * 2; }
    int64_t offset(int64_t row, int64_t tap) const {
        const int64_t left_over = taps % 4;
        const bool pairs = tap >= taps / 4 * 4 && (left_over == 1 || left_over == 2);
        const int64_t width = pairs ? 2 : 4;      // bytes of one row in a register
        const int64_t rows_in_half = 16 / width;  // rows that share half a register
        const int64_t reg = (row % 16) / rows_in_half + tap / 4 * 4;
        const int64_t byte = (row % 32) / 16 * 16 + width * (row % rows_in_half) + tap % 4;
        return (row / 32 * padded_taps() + reg) * kRegister + byte;
    }
};

// fbgemm::PackWeightMatrixForGConv: groups of 2, 4, 8 or 16 channels, `together` groups to a vector register.
//
//   [groups / together] [taps] [rows_per_group] [together] [padded_channels]      (slowest index first)
//
// padded_channels is the group's input channels rounded up to a multiple of 4 (the padding is zero); `together`
// depends on the CPU that packed (so that rows_per_group * padded_channels * together fills its vectors).
//
// Worked index, together = 2, taps = 9, rows_per_group = 4, channels = 4 (padded 4), group 3, tap 5, row 2, channel 1:
//   ((((3 / 2) * 9 + 5) * 4 + 2) * 2 + 3 % 2) * 4 + 1 = 469.
struct Groupwise {
    const int8_t* data;
    int64_t groups;
    int64_t rows_per_group;
    int64_t channels;  // input channels per group
    int64_t taps;
    int64_t together;

    int64_t padded_channels() const { return (channels + 3) / 4 * 4; }
    int64_t cols() const { return taps * channels; }
    int64_t offset(int64_t group, int64_t row, int64_t tap, int64_t channel) const {
        const int64_t vector = ((group / together) * taps + tap) * rows_per_group + row;
        return (vector * together + group % together) * padded_channels() + channel;
    }
};

// fbgemm::PackedDirectConvMatrix: the transposed convolutions with a kernel of (2, 1..6), groups = 1.
//
//   [rows / 8] [taps] [channels / 4] [8 rows] [4 channels]
//
// Worked index, taps = 4, channels = 16, row 9, tap 2, channel 6:
//   ((((9 / 8) * 4 + 2) * 4 + 6 / 4) * 8 + 9 % 8) * 4 + 6 % 4 = 806.
struct Direct {
    const int8_t* data;
    int64_t rows;
    int64_t channels;  // a multiple of 8, like rows
    int64_t taps;

    int64_t cols() const { return taps * channels; }
    int64_t offset(int64_t row, int64_t tap, int64_t channel) const {
        const int64_t quad = (row / 8 * taps + tap) * (channels / 4) + channel / 4;
        return (quad * 8 + row % 8) * 4 + channel % 4;
    }
};

}  // namespace qdeq::packing
