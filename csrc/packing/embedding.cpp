#include "packing/embedding.h"

#include <algorithm>
#include <vector>

namespace qdeq::packing {
namespace {

constexpr int64_t kElementsPerThread = 32768;

// The buffers of one thread: a row's integers, its floats and its 16-bit floats.
struct Buffers {
    std::vector<uint8_t> integers;
    std::vector<float> floats;
    std::vector<uint16_t> halves;
    explicit Buffers(int64_t cols)
        : integers(static_cast<size_t>(cols) + 64), floats(static_cast<size_t>(cols)), halves(floats.size()) {}
};

template <typename T>
void put(const T* values, int64_t count, int64_t col_stride, T* row) {
    for (int64_t c = 0; c < count; ++c) row[c * col_stride] = values[c];
}

RowBlock rows_of(const EmbeddingTable& table, int64_t row, int64_t count) {
    RowBlock block{};
    block.src = table.data + row * table.row_bytes;
    block.num_rows = count;
    block.row_len = table.cols;
    block.src_row_stride = table.row_bytes;
    block.channel_step = 1;
    block.scale = table.scale + row;
    block.zero_point = table.zero_point + row;
    return block;
}

}  // namespace

void embedding_to_float(const EmbeddingTable& table, const KernelSet& kernels, bool stream, ParallelFor parallel_for,
                        void* out, OutType type, int64_t row_stride, int64_t col_stride) {
    const auto dequantize = kernels.per_row[kUInt8][kSubFloat];
    const bool straight = type == kFloat32 && (col_stride == 1 || table.cols == 1);
    const int64_t grain = kElementsPerThread / std::max<int64_t>(table.cols, 1) + 1;
    parallel_for(table.rows, grain, [&](int64_t begin, int64_t end) {
        if (straight && table.bits == 8) {
            RowBlock block = rows_of(table, begin, end - begin);
            block.dst = static_cast<float*>(out) + begin * row_stride;
            block.dst_row_stride = row_stride;
            block.stream = stream;
            dequantize(block);
            kernels.fence();
            return;
        }
        Buffers buffers(table.cols);
        for (int64_t r = begin; r < end; ++r) {
            RowBlock block = rows_of(table, r, 1);
            if (table.bits != 8) {
                const auto unpack = table.bits == 4 ? kernels.unpack_4bit : kernels.unpack_2bit;
                unpack(static_cast<const uint8_t*>(block.src), buffers.integers.data(), table.cols);
                block.src = buffers.integers.data();
            }
            block.dst = straight ? static_cast<float*>(out) + r * row_stride : buffers.floats.data();
            block.stream = straight && stream;
            dequantize(block);
            if (straight) continue;
            if (type == kFloat32) {
                put(buffers.floats.data(), table.cols, col_stride, static_cast<float*>(out) + r * row_stride);
                continue;
            }
            (type == kBFloat16 ? kernels.to_bfloat16 : kernels.to_float16)(buffers.floats.data(), buffers.halves.data(),
                                                                           table.cols, false);
            put(buffers.halves.data(), table.cols, col_stride, static_cast<uint16_t*>(out) + r * row_stride);
        }
        kernels.fence();
    });
}

}  // namespace qdeq::packing
