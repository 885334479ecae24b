#include "kernels/strided.h"

#include <algorithm>
#include <cstring>

namespace qdeq {
namespace {

constexpr int64_t kTileRows = 64;          // bytes of a cache line: each line of a transposed source is read once
constexpr int64_t kTileCols = 256;         // 1 KiB of output per row of a tile
constexpr int64_t kBufferLen = 4096;       // floats: 16 KiB
constexpr int64_t kDirectStreamLen = 256;  // shorter rows are collected before they are streamed
constexpr int64_t kShortRun = 32;          // runs of one channel shorter than this get per element parameters
constexpr int64_t kMaxExpanded = 1 << 16;

int64_t int_size(IntType type) { return type == kInt32 ? 4 : 1; }

template <typename T>
void gather_strided(const T* src, int64_t row_stride, int64_t col_stride, T* dst, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) dst[r * cols + c] = src[r * row_stride + c * col_stride];
}

template <typename T>
void scatter_strided(const T* src, T* dst, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) dst[r * row_stride + c * col_stride] = src[r * cols + c];
}

uint8_t sub_byte_value(const uint8_t* bytes, int64_t index, int bits) {
    const int64_t per_byte = 8 / bits;
    return static_cast<uint8_t>((bytes[index / per_byte] >> (index % per_byte * bits)) & ((1 << bits) - 1));
}

// Values [index, index + count) of a packed buffer to one byte each.
void unpack_run(const uint8_t* bytes, int64_t index, int64_t count, int bits, const KernelSet& k, uint8_t* dst) {
    const int64_t per_byte = 8 / bits;
    while (count > 0 && index % per_byte != 0) {
        *dst++ = sub_byte_value(bytes, index++, bits);
        --count;
    }
    (bits == 4 ? k.unpack_4bit : k.unpack_2bit)(bytes + index / per_byte, dst, count);
}

}  // namespace

struct StridedDequantizer::Buffers {
    alignas(64) uint8_t bytes[kTileRows * kTileCols];
    alignas(64) int32_t words[kTileRows * kTileCols / 4];
    alignas(64) float floats[kBufferLen];
    alignas(64) uint16_t halves[kBufferLen];
};

StridedDequantizer::StridedDequantizer(const Request& request) : r_(request), numel_(1) {
    std::vector<Dim> dims;
    for (size_t d = 0; d < r_.sizes.size(); ++d) {
        numel_ *= r_.sizes[d];
        if (r_.sizes[d] == 1) continue;
        dims.push_back({r_.sizes[d], r_.src_strides[d], r_.dst_strides[d], static_cast<int64_t>(d) == r_.axis});
    }
    std::stable_sort(dims.begin(), dims.end(), [](const Dim& a, const Dim& b) { return a.dst > b.dst; });
    dims_.push_back({1, 0, 0, 0});
    for (const Dim& inner : dims) {
        Dim& outer = dims_.back();
        const bool same_run = outer.src == inner.src * inner.size && outer.dst == inner.dst * inner.size &&
                              outer.channel == inner.channel * inner.size;
        if (same_run && dims_.size() > 1)
            outer = {outer.size * inner.size, inner.src, inner.dst, inner.channel};
        else
            dims_.push_back(inner);
    }
    if (dims_.size() == 1) dims_.push_back({1, 1, 1, 0});
    if (numel_ > 0) expand_short_channels();
}

// (..., channels, short run): one row of channels * run with parameters per element, when rows repeat often enough to
// pay for writing those parameters out.
void StridedDequantizer::expand_short_channels() {
    if (dims_.size() < 3 || r_.formula == kSubInt32) return;
    const Dim run = dims_.back(), channels = dims_[dims_.size() - 2];
    const int64_t length = run.size * channels.size;
    const bool one_run = channels.src == run.src * run.size && channels.dst == run.dst * run.size;
    if (channels.channel != 1 || !one_run || run.size >= kShortRun || length > kMaxExpanded || numel_ / length < 8)
        return;
    const auto expand = [&](const auto* per_channel, auto& expanded) -> const void* {
        expanded.resize(length);
        for (int64_t i = 0; i < length; ++i) expanded[i] = per_channel[i / run.size];
        return expanded.data();
    };
    r_.zero_point = expand(static_cast<const float*>(r_.zero_point), expanded_zero_point_);
    r_.scale = r_.formula == kDouble ? expand(static_cast<const double*>(r_.scale), expanded_double_scale_)
                                     : expand(static_cast<const float*>(r_.scale), expanded_scale_);
    dims_.pop_back();
    dims_.back() = {length, run.src, run.dst, 1};
}

void StridedDequantizer::run(int64_t begin, int64_t end, const KernelSet& kernels, bool stream) const {
    Buffers buffers;
    const size_t last = dims_.size() - 1;
    const Dim &row = dims_[last], &rows = dims_[last - 1];
    while (begin < end) {
        int64_t rest = begin / row.size;
        const int64_t col = begin % row.size;
        const int64_t row_index = rest % rows.size;
        rest /= rows.size;
        int64_t src = col * row.src + row_index * rows.src;
        int64_t dst = col * row.dst + row_index * rows.dst;
        int64_t channel = col * row.channel + row_index * rows.channel;
        for (size_t d = last - 1; d-- > 0; rest /= dims_[d].size) {
            const int64_t index = rest % dims_[d].size;
            src += index * dims_[d].src;
            dst += index * dims_[d].dst;
            channel += index * dims_[d].channel;
        }
        int64_t num_rows = 1, num_cols = std::min(row.size - col, end - begin);
        if (col == 0 && num_cols == row.size) num_rows = std::min(rows.size - row_index, (end - begin) / row.size);
        block(src, dst, channel, num_rows, num_cols, kernels, stream, buffers);
        begin += num_rows * num_cols;
    }
    if (stream) kernels.fence();
}

void StridedDequantizer::block(int64_t src, int64_t dst, int64_t channel, int64_t rows, int64_t cols,
                               const KernelSet& kernels, bool stream, Buffers& buffers) const {
    const Dim &col_dim = dims_.back(), &row_dim = dims_[dims_.size() - 2];
    const bool gathered = r_.bits < 8 || col_dim.src != 1;
    const bool staged = r_.out_type != kFloat32 || col_dim.dst != 1 || (stream && cols < kDirectStreamLen);
    int64_t tile_rows = rows, tile_cols = cols;
    if (gathered || staged) {
        const int64_t room = std::min<int64_t>(staged ? kBufferLen : kTileRows * kTileCols,
                                               gathered ? kTileRows * kTileCols / int_size(r_.int_type) : INT64_MAX);
        const bool transposed = gathered && row_dim.src == 1 && rows > 1;
        tile_cols = std::min(cols, transposed ? kTileCols : room);
        tile_rows = std::max<int64_t>(1, std::min(rows, room / tile_cols));
        if (transposed) tile_rows = std::min(tile_rows, kTileRows);
    }
    const bool per_element = col_dim.channel == 1;
    const RowsFn kernel = (per_element ? kernels.per_element : kernels.per_row)[r_.int_type][r_.formula];
    const int64_t scale_size = r_.formula == kDouble ? 8 : 4;
    for (int64_t r = 0; r < rows; r += tile_rows) {
        for (int64_t c = 0; c < cols; c += tile_cols) {
            RowBlock b;
            b.num_rows = std::min(tile_rows, rows - r);
            b.row_len = std::min(tile_cols, cols - c);
            const int64_t tile_src = src + r * row_dim.src + c * col_dim.src;
            const int64_t tile_dst = dst + r * row_dim.dst + c * col_dim.dst;
            const int64_t tile_channel = channel + r * row_dim.channel + c * col_dim.channel;
            b.src = gathered ? gather(tile_src, b.num_rows, b.row_len, kernels, buffers)
                             : static_cast<const char*>(r_.src) + tile_src * int_size(r_.int_type);
            b.src_row_stride = gathered ? b.row_len : row_dim.src;
            b.dst = staged ? buffers.floats : static_cast<float*>(r_.dst) + tile_dst;
            b.dst_row_stride = staged ? b.row_len : row_dim.dst;
            b.channel_step = row_dim.channel;
            b.scale = static_cast<const char*>(r_.scale) + tile_channel * scale_size;
            b.zero_point = static_cast<const char*>(r_.zero_point) + tile_channel * 4;
            b.stream = stream && !staged;
            kernel(b);
            if (staged) emit(tile_dst, b.num_rows, b.row_len, kernels, stream, buffers);
        }
    }
}

const void* StridedDequantizer::gather(int64_t src, int64_t rows, int64_t cols, const KernelSet& kernels,
                                       Buffers& buffers) const {
    const int64_t row_stride = dims_[dims_.size() - 2].src, col_stride = dims_.back().src;
    const auto* bytes = static_cast<const uint8_t*>(r_.src);
    if (r_.bits < 8 && col_stride == 1) {
        if (row_stride == cols) {
            unpack_run(bytes, src, rows * cols, r_.bits, kernels, buffers.bytes);
        } else {
            for (int64_t r = 0; r < rows; ++r)
                unpack_run(bytes, src + r * row_stride, cols, r_.bits, kernels, buffers.bytes + r * cols);
        }
    } else if (r_.bits < 8) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < cols; ++c)
                buffers.bytes[r * cols + c] = sub_byte_value(bytes, src + r * row_stride + c * col_stride, r_.bits);
    } else if (r_.int_type == kInt32) {
        gather_strided(static_cast<const int32_t*>(r_.src) + src, row_stride, col_stride, buffers.words, rows, cols);
        return buffers.words;
    } else if (row_stride == 1) {
        kernels.transpose_bytes(bytes + src, col_stride, buffers.bytes, cols, rows, cols);
    } else {
        gather_strided(bytes + src, row_stride, col_stride, buffers.bytes, rows, cols);
    }
    return buffers.bytes;
}

void StridedDequantizer::emit(int64_t dst, int64_t rows, int64_t cols, const KernelSet& kernels, bool stream,
                              Buffers& buffers) const {
    const int64_t row_stride = dims_[dims_.size() - 2].dst, col_stride = dims_.back().dst;
    const auto write = [&](const float* from, int64_t to, int64_t count) {
        if (r_.out_type == kFloat32)
            kernels.copy(from, static_cast<float*>(r_.dst) + to, count, stream);
        else if (r_.out_type == kBFloat16)
            kernels.to_bfloat16(from, static_cast<uint16_t*>(r_.dst) + to, count, stream);
        else
            kernels.to_float16(from, static_cast<uint16_t*>(r_.dst) + to, count, stream);
    };
    if (col_stride == 1 && (rows == 1 || row_stride == cols)) {
        write(buffers.floats, dst, rows * cols);
    } else if (col_stride == 1) {
        for (int64_t r = 0; r < rows; ++r) write(buffers.floats + r * cols, dst + r * row_stride, cols);
    } else if (r_.out_type == kFloat32) {
        scatter_strided(buffers.floats, static_cast<float*>(r_.dst) + dst, row_stride, col_stride, rows, cols);
    } else {
        (r_.out_type == kBFloat16 ? kernels.to_bfloat16 : kernels.to_float16)(buffers.floats, buffers.halves,
                                                                              rows * cols, false);
        scatter_strided(buffers.halves, static_cast<uint16_t*>(r_.dst) + dst, row_stride, col_stride, rows, cols);
    }
}

}  // namespace qdeq
