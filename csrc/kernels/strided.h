// From any strides to any strides: walks a tensor in the order in which the output lies and hands contiguous rows to
// a kernel set. What a kernel cannot take (gathered or sub-byte integers, scattered or 16-bit results) goes through
// buffers that stay in the first-level cache.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace qdeq {

struct Request {
    const void* src;
    IntType int_type;  // kUInt8 where bits < 8
    int bits;          // 2, 4 (packed low bits first; strides count values), 8 or 32
    void* dst;
    OutType out_type;
    std::vector<int64_t> sizes, src_strides, dst_strides;  // in elements; dst does not overlap itself
    int64_t axis;                                          // of the channels; -1: one scale and zero point for all
    Formula formula;
    const void* scale;       // as RowBlock says; one per channel
    const void* zero_point;  // likewise
};

class StridedDequantizer {
  public:
    explicit StridedDequantizer(const Request& request);
    StridedDequantizer(const StridedDequantizer&) = delete;  // r_ may point into its own vectors
    StridedDequantizer& operator=(const StridedDequantizer&) = delete;

    int64_t numel() const { return numel_; }
    int64_t out_bytes() const { return numel_ * out_size(); }

    // Results [begin, end), counted in the order in which the output lies in memory. Ranges may run at the same time.
    void run(int64_t begin, int64_t end, const KernelSet& kernels, bool stream) const;

  private:
    struct Dim {
        int64_t size, src, dst, channel;  // steps in elements; channel is 1 on the channel axis, else 0
    };
    struct Buffers;

    int64_t out_size() const { return r_.out_type == kFloat32 ? 4 : 2; }
    void expand_short_channels();
    void block(int64_t src, int64_t dst, int64_t channel, int64_t rows, int64_t cols, const KernelSet& kernels,
               bool stream, Buffers& buffers) const;
    const void* gather(int64_t src, int64_t rows, int64_t cols, const KernelSet& kernels, Buffers& buffers) const;
    void emit(int64_t dst, int64_t rows, int64_t cols, const KernelSet& kernels, bool stream, Buffers& buffers) const;

    Request r_;
    std::vector<Dim> dims_;  // at least two; outermost first in the output's memory; the last is a row
    int64_t numel_;
    std::vector<float> expanded_scale_, expanded_zero_point_;  // filled by expand_short_channels
    std::vector<double> expanded_double_scale_;
};

}  // namespace qdeq
